import os
from pathlib import Path

import pytest

from megaqk.runtime.streams import lossy_stream


def test_what_a_full_disk_does_not_take_is_lost(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        stream = lossy_stream(full.fileno())
        print("nothing of this", file=stream)
        stream.write("nor this, without a newline")
        stream.close()
    with (tmp_path / "log").open("wb") as file:
        print("with room", file=lossy_stream(file.fileno()))
    assert (tmp_path / "log").read_text() == "with room\n"


def test_a_reader_that_has_gone_is_still_told_of() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        print("anybody?", file=lossy_stream(writer))
