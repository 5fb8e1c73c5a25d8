"""Writing Megatron's corpus format; see `indexed` for its layout."""

import itertools
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.data.files import os_errors_named, written_whole
from megaqk.data.indexed import CODES, MAGIC, VERSION, data_path, index_path
from megaqk.data.tokenizer import Tokenizer

_BLOCK = 1 << 20
_DOCUMENTS_AT_ONCE = 256


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


def tokenize(
    texts: Iterable[str], tokenizer: Tokenizer, prefix: Path, dtype: np.dtype[Any], *, num_threads: int = 1
) -> tuple[int, int]:
    """Tokenise documents into PREFIX.bin and PREFIX.idx, each followed by an end of document.

    Returns:
        The number of documents and of tokens written.

    Raises:
        UserError: The operating system refused to write.
    """
    lengths: list[npt.NDArray[np.int32]] = []
    eod = np.array([tokenizer.eod_id], dtype=dtype)
    iterator = iter(texts)
    with written_whole(data_path(prefix)) as path, path.open("wb") as stream:
        while batch := list(itertools.islice(iterator, _DOCUMENTS_AT_ONCE)):
            encoded = tokenizer.encode_batch(batch, num_threads=num_threads)
            lengths.append(np.array([len(ids) + 1 for ids in encoded], dtype=np.int32))
            pieces = itertools.chain.from_iterable((ids, eod) for ids in encoded)
            stream.write(np.concatenate(list(pieces)).astype(dtype).tobytes())
    all_lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int32)
    write_index(prefix, dtype, all_lengths)
    return len(all_lengths), int(all_lengths.sum(dtype=np.int64))
