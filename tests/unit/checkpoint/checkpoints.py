"""Small checkpoints for the tests of their files."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.index import Index
from megaqk.checkpoint.rank_file import file_name, write_rank_file
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore

MATRIX = torch.arange(35, dtype=torch.float32).view(7, 5)
VECTOR = torch.arange(6, dtype=torch.float32)
TENSORS: dict[str, Tensor] = {"weight/matrix": MATRIX, "weight/vector": VECTOR}
PARTS = (
    # Of two ranks: rows, then the rest of them; the halves of the vector.
    [
        ("weight/matrix", Box((0, 0), (3, 5))),
        ("weight/matrix", Box((3, 0), (1, 2))),
        ("weight/vector", Box((0,), (3,))),
    ],
    [
        ("weight/matrix", Box((3, 2), (1, 3))),
        ("weight/matrix", Box((4, 0), (3, 5))),
        ("weight/vector", Box((3,), (3,))),
    ],
)


def open_store(folder: Path, **retention: int) -> CheckpointStore:
    return CheckpointStore(folder, Retention(**{"newest": 2, **retention}))


def manifest_of(step: int, valid_loss: float | None = None) -> dict[str, Any]:
    progress = {"step": step, "samples": 8 * step, "tokens": 80 * step, "skipped": 0}
    return {"progress": progress, "config": {}, "identity": {}, "data": {}, "state": {}, "valid_loss": valid_loss}


def write(store: CheckpointStore, step: int) -> tuple[Index, dict[str, int]]:
    """Write the files of both ranks into the partial folder."""
    files, sizes = {}, {}
    for rank, parts in enumerate(PARTS):
        whole = [(TENSORS[name] + step, box) for name, box in parts]
        outer = [Box.whole(tuple(tensor.shape)) for tensor, _ in whole]
        pieces = [box.within(out, tensor).flatten() for (tensor, box), out in zip(whole, outer, strict=True)]
        path = store.partial(step) / file_name(rank)
        files[path.name] = write_rank_file(path, parts, torch.cat(pieces))
        sizes[path.name] = path.stat().st_size
    return Index({name: tuple(tensor.shape) for name, tensor in TENSORS.items()}, files), sizes


def save(
    store: CheckpointStore, step: int, valid_loss: float | None = None, config: dict[str, Any] | None = None
) -> None:
    """A checkpoint in which every element of `TENSORS` is larger by the step."""
    store.begin(step)
    store.commit(step, {**manifest_of(step, valid_loss), "config": config or {}}, *write(store, step))
