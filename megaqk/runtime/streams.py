"""Where messages go, which may be a file on a disk that is full."""

import errno
import io
from typing import Any, TextIO


class _Lossy(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return len(data)


def lossy_stream(descriptor: int) -> TextIO:
    """Text for people into an open file: what a full disk does not take is lost, and whoever writes goes on.

    A line that waited in a buffer for room would also be tried again at the end of the process, and its status be 120.
    """
    file = _Lossy(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(file), errors="backslashreplace", line_buffering=True)
