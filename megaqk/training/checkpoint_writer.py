"""How a rank's files of a checkpoint get onto the disk."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from megaqk.parallel.world import World


class _HashedFile(io.BufferedWriter):
    """A file that is written from front to end, and what has been written to it so far."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def write(self, block: Any) -> int:
        self.sha256.update(block)
        self.bytes += len(block)
        return super().write(block)


class CheckpointWriter(TorchCheckpointEngine):  # type: ignore[misc]
    """What DeepSpeed writes a checkpoint with: each rank hashes and syncs what it writes, while it writes it.

    Nobody has to list the folder or to read files of others, which on a network file system may not be there yet.

    Args:
        world: The processes.

    Attributes:
        files: Size (`bytes`) and checksum (`sha256`) of each file that the ranks have written, by name; on every rank
            once `commit` returns.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.files: dict[str, dict[str, Any]] = {}
        self._world = world
        self._own: dict[str, dict[str, Any]] = {}

    def create(self, info: Any) -> None:
        """Begin a checkpoint."""
        del info
        self._own = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file."""
        with _HashedFile(path) as file:
            torch.save(state_dict, file)
            file.flush()
            os.fsync(file.fileno())
        self._own[Path(path).name] = {"bytes": file.bytes, "sha256": file.sha256.hexdigest()}

    def commit(self, info: Any) -> bool:
        """Wait until every rank has written its files.

        A barrier of DeepSpeed's follows, which over NCCL would give up on a rank whose disk takes minutes longer.
        """
        del info
        own = self._world.agreed(lambda: self._own)
        self.files = {name: file for files in own for name, file in sorted(files.items())}
        assert len(self.files) == sum(map(len, own)), "no two ranks write one file"
        return True
