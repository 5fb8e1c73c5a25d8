"""The average of the weights of several checkpoints, in memory that does not grow with the model."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box, boxes_of_range
from megaqk.checkpoint.index import PIECE_ELEMENTS, WEIGHT, Index, tensor_name
from megaqk.checkpoint.rank_file import file_name, write_rank_file
from megaqk.checkpoint.reader import Checkpoint, Wanted, open_checkpoint
from megaqk.checkpoint.store import AVERAGED, PARTIAL, describe
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, sync_directory

FILE_PIECES = 16
"""Pieces of a file, which is in memory when it is written: 256 MiB."""

_Parts = list[tuple[str, Box]]


def average(paths: Sequence[Path], output: Path, decay: float | None = None) -> None:
    """Average the weights of checkpoints of one model into a new one, of weights alone.

    Sums are in fp64. A file of at most `FILE_PIECES` pieces is in memory, and one piece for each step of a sum.

    Args:
        paths: Folders of checkpoints, or of runs for their newest.
        output: The folder to make; it is there when all of it is.
        decay: How much a checkpoint weighs relative to the next newer one, by steps; None: all weigh alike.

    Raises:
        UserError: `output` exists, `decay` makes no sense, a checkpoint is damaged, or they are of several models.
    """
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"--exponential = {decay:g}: must be above 0 and below 1")
    if output.exists():
        raise UserError(f"--output = {output}: is there already; must be a new folder")
    ones = sorted(map(open_checkpoint, paths), key=lambda one: int(one.manifest["progress"]["step"]))
    for one in ones[:-1]:
        _check_same_model(one, ones[-1])
    shares = [1.0 if decay is None else decay**age for age in reversed(range(len(ones)))]
    shares = [share / sum(shares) for share in shares]
    with os_errors_named(output):
        beside = output.with_name(output.name + PARTIAL)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        index, sizes = _write(ones, shares, beside)
        describe(beside, _about(ones, shares), index, sizes)
        beside.rename(output)
        sync_directory(output.parent)


def _check_same_model(one: Checkpoint, newest: Checkpoint) -> None:
    model = newest.manifest["config"]["model"]
    for key, value in one.manifest["config"]["model"].items():
        if value != model.get(key):
            raise UserError(
                f"{one.path}: model.{key} = {value}: must be {model.get(key)}, as in {newest.path}: only checkpoints "
                "of one model have an average"
            )
    tokens, must_be = (manifest["identity"]["tokens"] for manifest in (one.manifest, newest.manifest))
    if tokens != must_be:
        raise UserError(f"{one.path}: has a vocabulary of {tokens} tokens: must have {must_be}, as {newest.path}")


def _about(ones: Sequence[Checkpoint], shares: Sequence[float]) -> dict[str, Any]:
    """The manifest: what the newest says of model and data, and what the average is made of."""
    newest = ones[-1].manifest
    parts = zip(ones, shares, strict=True)
    return {
        **{name: newest[name] for name in ("progress", "config", "identity", "data")},
        "state": {},
        "valid_loss": None,
        AVERAGED: [
            {
                "path": str(one.path),
                "step": one.manifest["progress"]["step"],
                "index": one.manifest["index"],
                "share": share,
            }
            for one, share in parts
        ],
    }


def _write(ones: Sequence[Checkpoint], shares: Sequence[float], folder: Path) -> tuple[Index, dict[str, int]]:
    """Write the files of an average, each summed when its turn comes; the index, and the bytes of each."""
    names = [tensor_name(WEIGHT, name) for name in ones[-1].parameters]
    shapes = {name: ones[-1].index.tensors[name] for name in names}
    files, sizes = {}, {}
    for number, parts in enumerate(_files(shapes)):
        path = folder / file_name(number)
        data, at = torch.empty(sum(box.numel for _, box in parts)), 0
        for name, box in parts:
            data[at : at + box.numel] = _mean(ones, shares, name, box).flatten()
            at += box.numel
        files[path.name] = write_rank_file(path, parts, data)
        sizes[path.name] = path.stat().st_size
    return Index(shapes, files), sizes


def _files(shapes: dict[str, tuple[int, ...]]) -> Iterator[_Parts]:
    """Which pieces of which tensors each file has."""
    parts: _Parts = []
    for name, shape in shapes.items():
        for box in boxes_of_range(shape, 0, Box.whole(shape).numel, at_most=PIECE_ELEMENTS):
            if sum(held.numel for _, held in parts) + box.numel > FILE_PIECES * PIECE_ELEMENTS:
                yield parts
                parts = []
            parts.append((name, box))
    yield parts


def _mean(ones: Sequence[Checkpoint], shares: Sequence[float], name: str, box: Box) -> Tensor:
    total = torch.zeros(box.shape, dtype=torch.float64)
    for one, share in zip(ones, shares, strict=True):
        read = torch.zeros(box.shape)
        # Rows that pad the vocabulary, of which another topology may have had fewer, are zero.
        if (known := box.intersection(Box.whole(one.index.tensors[name]))) is not None:
            one.read([Wanted(name, known, known.within(box, read))])
        total.add_(read, alpha=share)
    return total
