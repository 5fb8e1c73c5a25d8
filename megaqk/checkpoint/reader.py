"""Reading a checkpoint: any rectangles of any of its tensors, checked as they are read."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.damage import DamagedError, damage_named
from megaqk.checkpoint.index import WEIGHT, Index, Piece, tensor_name
from megaqk.checkpoint.piece_files import PieceFiles
from megaqk.checkpoint.rank_file import header_of
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import AVERAGED, INDEX, MANIFEST, CheckpointStore, read_manifest
from megaqk.errors import UserError

_THREADS = 4


@dataclass
class Wanted:
    """A rectangle that is to be read.

    Attributes:
        tensor: See `tensor_name`.
        box: The rectangle.
        target: Where it goes, in its shape; written as soon as a piece of it is read.
        missing: Elements that have not been read.
    """

    tensor: str
    box: Box
    target: Tensor
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = self.box.numel


class Checkpoint:
    """A complete checkpoint; opening it reads its manifest.

    Args:
        path: Its folder, whatever it is called.

    Attributes:
        manifest: What was written beside the tensors.

    Raises:
        UserError: It is damaged, or of another format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)

    @cached_property
    def index(self) -> Index:
        """What it holds.

        Raises:
            DamagedError: The index is not what was written.
        """
        path = self.path / INDEX
        with damage_named(path):
            text = path.read_bytes()
            if hashlib.sha256(text).hexdigest() != self.manifest["index"]:
                raise DamagedError(f"{path}: damaged, its contents are not what was written")
            return Index.from_json(text)

    @property
    def parameters(self) -> list[str]:
        """Global names of the model's parameters, in its order."""
        return [name.removeprefix(f"{WEIGHT}/") for name in self.index.tensors if name.startswith(f"{WEIGHT}/")]

    def weight(self, parameter: str) -> Tensor:
        """The whole fp32 tensor of a parameter.

        Raises:
            UserError: It is damaged, or the model has no such parameter.
        """
        return self.tensor(tensor_name(WEIGHT, parameter))

    def tensor(self, name: str) -> Tensor:
        """A whole tensor; see `tensor_name`."""
        if name not in self.index.tensors:
            raise UserError(
                f"{self.path}: holds no {name}: must be one of {', '.join(list(self.index.tensors)[:3])}, ..."
            )
        shape = self.index.tensors[name]
        whole = torch.empty(shape)
        self.read([Wanted(name, Box.whole(shape), whole)])
        return whole

    def read(self, wanted: Sequence[Wanted]) -> None:
        """Read rectangles into their targets.

        Each piece that has a part of any of them is read once, whole, and held against its checksum. A few pieces at a
        time are in memory.

        Raises:
            DamagedError: A piece is not what was written, or not there. Targets may have been written.
            UserError: A file cannot be read now.
        """
        by_tensor: dict[str, list[Wanted]] = defaultdict(list)
        for one in wanted:
            by_tensor[one.tensor].append(one)
        jobs = []
        for tensor, ones in by_tensor.items():
            for file, piece in self.index.pieces.get(tensor, ()):
                parts = [(one, box) for one in ones if (box := one.box.intersection(piece.box)) is not None]
                if parts:
                    jobs.append((file, piece, parts))
        jobs.sort(key=lambda job: (job[0], job[1].offset))
        lock = Lock()

        def copy(file: str, piece: Piece, parts: list[tuple[Wanted, Box]]) -> None:
            targets = [box.within(one.box, one.target) for one, box in parts]
            # In the topology that wrote it, most pieces are wanted as they are: there is no copy to pay for.
            as_it_is = [box for _, box in parts] == [piece.box] and targets[0].is_contiguous() and targets[0].is_cpu
            content = files.read(file, piece, targets[0] if as_it_is else None)
            for (one, box), target in zip(parts, targets, strict=True):
                if not as_it_is:
                    target.copy_(box.within(piece.box, content))
                with lock:
                    one.missing -= box.numel

        with PieceFiles(self.path) as files, ThreadPoolExecutor(_THREADS) as pool, torch.no_grad():
            pending = [pool.submit(copy, *job) for job in jobs]
            try:
                for result in pending:
                    result.result()
            finally:
                for result in pending:
                    result.cancel()
        for one in wanted:
            if one.missing:
                raise DamagedError(f"{self.path / INDEX}: damaged, {one.missing} elements of {one.tensor} are nowhere")

    def verify(self) -> None:
        """Hold every byte of every file against what was written.

        Raises:
            DamagedError: For the first that differs.
        """
        with PieceFiles(self.path) as opened, ThreadPoolExecutor(_THREADS) as pool:
            for name, pieces in self.index.files.items():
                header = header_of([(piece.tensor, piece.box) for piece in pieces])
                if opened.bytes(name, 0, len(header)).tobytes() != header:
                    raise DamagedError(f"{self.path / name}: damaged, its header is not what was written")
                for _ in pool.map(lambda piece, name=name: opened.read(name, piece).numel(), pieces):
                    pass


def open_step(store: CheckpointStore, step: int) -> Checkpoint:
    """The checkpoint of a step of a run.

    Raises:
        DamagedError: As `Checkpoint`, or another one's folder bears its name.
    """
    checkpoint = Checkpoint(store.path(step))
    # An average lies wherever its maker likes.
    if (other := checkpoint.manifest["progress"]["step"]) != step and AVERAGED not in checkpoint.manifest:
        raise DamagedError(f"{checkpoint.path}: damaged, it is of step {other}")
    return checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder: that of a step, or the newest of a run.

    Raises:
        UserError: There is none.
        DamagedError: As `open_step`.
    """
    if (path / MANIFEST).is_file():
        return Checkpoint(path)
    store = CheckpointStore(path / "checkpoints", Retention(newest=1))
    if not (steps := store.steps()):
        raise UserError(f"{path}: must be a checkpoint (RUN_DIR/checkpoints/step-N) or a run.dir that has one")
    return open_step(store, steps[-1])
