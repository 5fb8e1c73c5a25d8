"""Writing Megatron's corpus format; see `indexed` for its layout."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.data.indexed import CODES, MAGIC, VERSION, data_path, index_path
from megaqk.runtime.files import os_errors_named, written_whole

_BLOCK = 1 << 20


@dataclass(frozen=True)
class IndexPart:
    """A run of documents in an index.

    Attributes:
        lengths: Tokens of each sequence, shape (sequences,); may be memory-mapped, it is read in blocks.
        documents: Sequence boundaries of the documents, shape (documents + 1,), counted from anywhere; None: each
            sequence is a document.
    """

    lengths: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int64] | None = None

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.lengths) if self.documents is None else len(self.documents) - 1

    def ends(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Return where documents [begin, end) end, in sequences of this part."""
        if self.documents is None:
            return np.arange(begin + 1, end + 1, dtype=np.int64)
        ends: npt.NDArray[np.int64] = self.documents[begin + 1 : end + 1] - self.documents[0]
        return ends


def write_index(path: Path, dtype: np.dtype[Any], parts: Sequence[IndexPart]) -> None:
    """Write the index of sequences that lie back to back in PREFIX.bin.

    Args:
        path: PREFIX.idx, or what will become it.
        dtype: Type of the tokens in PREFIX.bin.
        parts: Documents, part after part.

    Raises:
        UserError: The operating system refused to write.
    """
    sequences = sum(len(part.lengths) for part in parts)
    entries = sum(part.num_documents for part in parts) + 1
    with written_whole(path) as beside, beside.open("wb") as stream:
        stream.write(MAGIC + struct.pack("<QBQQ", VERSION, CODES[dtype], sequences, entries))
        blocks = [(part.lengths, begin) for part in parts for begin in range(0, len(part.lengths), _BLOCK)]
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
            for begin in range(0, part.num_documents, _BLOCK):
                ends = part.ends(begin, min(begin + _BLOCK, part.num_documents))
                stream.write((before + ends).astype("<i8").tobytes())
            before += len(part.lengths)


def write_corpus(prefix: Path, dtype: np.dtype[Any], documents: list[npt.NDArray[Any]]) -> None:
    """Write a small corpus that is in memory, one sequence a document.

    Raises:
        UserError: The operating system refused to write.
    """
    with os_errors_named(prefix):
        prefix.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(data_path(prefix)) as path, path.open("wb") as stream:
        for document in documents:
            stream.write(np.asarray(document).astype(dtype).tobytes())
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    write_index(index_path(prefix), dtype, [IndexPart(lengths)])
