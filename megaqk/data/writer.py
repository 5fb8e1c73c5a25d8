"""Writing Megatron's corpus format; see `indexed` for its layout."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.data.files import os_errors_named, written_whole
from megaqk.data.indexed import CODES, MAGIC, VERSION, data_path, index_path

_BLOCK = 1 << 20


def write_index(prefix: Path, dtype: np.dtype[Any], lengths: npt.NDArray[np.int32]) -> None:
    """Write PREFIX.idx for documents of one sequence each, back to back in PREFIX.bin.

    Args:
        prefix: Path without extension.
        dtype: Type of the tokens in PREFIX.bin.
        lengths: Tokens of each document, shape (documents,); may be memory-mapped, it is read in blocks.

    Raises:
        UserError: The operating system refused to write.
    """
    count = len(lengths)
    with written_whole(index_path(prefix)) as path, path.open("wb") as stream:
        stream.write(MAGIC + struct.pack("<QBQQ", VERSION, CODES[dtype], count, count + 1))
        for begin in range(0, count, _BLOCK):
            stream.write(lengths[begin : begin + _BLOCK].astype("<i4").tobytes())
        start = 0
        for begin in range(0, count, _BLOCK):
            sizes = lengths[begin : begin + _BLOCK].astype(np.int64) * dtype.itemsize
            ends = start + np.cumsum(sizes)
            stream.write((ends - sizes).astype("<i8").tobytes())
            start = int(ends[-1])
        for begin in range(0, count + 1, _BLOCK):
            stream.write(np.arange(begin, min(begin + _BLOCK, count + 1), dtype="<i8").tobytes())


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
    write_index(prefix, dtype, np.array([len(document) for document in documents], dtype=np.int32))
