"""The files of a checkpoint, open for several threads."""

import hashlib
import os
from pathlib import Path
from threading import get_ident, local

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megaqk.checkpoint.damage import DamagedError, damage_named
from megaqk.checkpoint.index import Piece


class PieceFiles:
    """Reads pieces; each thread has one buffer, and one file open, however many there are.

    Args:
        folder: The checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, tuple[str, int]] = {}  # by thread
        self._local = local()

    def __enter__(self) -> "PieceFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for _file, descriptor in self._open.values():
            os.close(descriptor)

    def read(self, file: str, piece: Piece, into: Tensor | None = None) -> Tensor:
        """A piece in its shape: in memory of the host that is given for it, or until the same thread reads the next.

        Raises:
            DamagedError: It is not what was written.
        """
        given = None if into is None else into.view(-1).numpy().view(np.uint8)
        content = self.bytes(file, piece.offset, piece.bytes, given)
        if hashlib.sha256(content.data).hexdigest() != piece.sha256:
            raise DamagedError(
                f"{self._folder / file}: damaged, what begins at byte {piece.offset} is not what was written"
            )
        return torch.from_numpy(content.view(np.float32)).view(piece.box.shape)

    def bytes(
        self, file: str, first: int, count: int, into: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Some bytes of a file: where they are wanted, or until the same thread reads the next.

        Raises:
            DamagedError: They are not there.
        """
        buffer = getattr(self._local, "buffer", None) if into is None else into
        if buffer is None or len(buffer) < count:
            buffer = self._local.buffer = np.empty(count, np.uint8)
        content: npt.NDArray[np.uint8] = buffer[:count]
        with damage_named(self._folder / file):
            descriptor, done = self._descriptor(file), 0
            while done < count:
                got = os.preadv(descriptor, [content[done:].data], first + done)
                if not got:
                    raise DamagedError(f"{self._folder / file}: damaged, it ends at byte {first + done}")
                done += got
        return content

    def _descriptor(self, file: str) -> int:
        me = get_ident()
        name, descriptor = self._open.get(me, ("", -1))
        if name != file:
            if self._open.pop(me, None):
                os.close(descriptor)
            descriptor = os.open(self._folder / file, os.O_RDONLY)
            self._open[me] = file, descriptor
        return descriptor
