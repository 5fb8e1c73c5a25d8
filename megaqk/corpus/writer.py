"""Writing Megatron's corpus format (see `indexed` for its layout), and giving what was written its final names."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megaqk.data.indexed import CODES, MAGIC, VERSION, data_path, file_of, index_path
from megaqk.data.manifest import Manifest, manifest_path, write_manifest
from megaqk.runtime.files import os_errors_named, sync_directory, written_whole

_BLOCK = 1 << 20


class Partial(NamedTuple):
    """The files of an unfinished corpus."""

    data: Path
    idx: Path
    lengths: Path
    journal: Path


def partial_files(prefix: Path) -> Partial:
    """Return where the parts of a corpus are until it is finished."""
    suffixes = (".bin.partial", ".idx.partial", ".len.partial", ".journal.json")
    return Partial(*(file_of(prefix, suffix) for suffix in suffixes))


class IndexPart(NamedTuple):
    """A run of documents in an index."""

    # Tokens of each sequence, and the documents + 1 boundaries of documents in sequences, counted from anywhere. Both
    # are read in blocks: they may be mapped files, and a range where each sequence is a document.
    lengths: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int64] | range


def write_index(path: Path, dtype: np.dtype[Any], parts: Sequence[IndexPart]) -> None:
    """Write the index of `parts`, one after another, whose sequences lie back to back in data of type `dtype`."""
    sequences = sum(len(part.lengths) for part in parts)
    entries = sum(len(part.documents) - 1 for part in parts) + 1
    blocks = [(part.lengths, begin) for part in parts for begin in range(0, len(part.lengths), _BLOCK)]
    with written_whole(path) as beside, beside.open("wb") as stream:
        stream.write(MAGIC + struct.pack("<QBQQ", VERSION, CODES[dtype], sequences, entries))
        for lengths, begin in blocks:
            stream.write(lengths[begin : begin + _BLOCK].astype("<i4").tobytes())
        start = 0
        for lengths, begin in blocks:
            sizes = lengths[begin : begin + _BLOCK].astype(np.int64) * dtype.itemsize
            ends = start + np.cumsum(sizes)
            stream.write((ends - sizes).astype("<i8").tobytes())
            start = int(ends[-1])
        stream.write(struct.pack("<q", 0))
        before = 0
        for part in parts:
            for begin in range(1, len(part.documents), _BLOCK):
                ends = np.asarray(part.documents[begin : begin + _BLOCK], dtype=np.int64)
                stream.write((ends + (before - int(part.documents[0]))).astype("<i8").tobytes())
            before += len(part.lengths)


def publish(prefix: Path, manifest: Manifest | None) -> None:
    """Rename the partial data and index to what they are, in place of what was there.

    The old manifest goes first, so that it never describes new files, and the old data next; the new data's rename is
    the last step and makes all of it a corpus. Whatever interrupts this leaves the partial data, with which the
    corpus is unfinished and can be published again.
    """
    partial = partial_files(prefix)
    with os_errors_named(prefix):
        for path in (manifest_path(prefix), data_path(prefix)):
            path.unlink(missing_ok=True)
            # Directory entries reach the disk in the order of these only because each waits for the one before.
            sync_directory(prefix.parent)
        partial.idx.replace(index_path(prefix))
        sync_directory(prefix.parent)
    if manifest is not None:
        write_manifest(prefix, manifest)
    with os_errors_named(prefix):
        partial.data.replace(data_path(prefix))
        sync_directory(prefix.parent)
