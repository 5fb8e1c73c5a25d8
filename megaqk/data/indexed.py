"""Reading Megatron's corpus format: PREFIX.bin holds the tokens, PREFIX.idx says where each document lies.

The index is little-endian: the magic, version (u64) = 1, the token type's code (u8), the number of sequences n (u64),
the number of document entries d (u64), n lengths in tokens (i32), n byte offsets into the data (i64), and d entries
(i64) of which entries i and i + 1 are the first sequence of document i and the one after its last. A multimodal index
goes on with n modes (i8), 0 for text.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER_BYTES = len(MAGIC) + struct.calcsize("<QBQQ")
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_BLOCK = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type that Megatron stores tokens of this vocabulary in: 16 bits unsigned or 32 bits."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def file_of(prefix: Path, suffix: str) -> Path:
    """Return PREFIX with a suffix; a name may hold dots."""
    return prefix.with_name(prefix.name + suffix)


def data_path(prefix: Path) -> Path:
    """Return PREFIX.bin."""
    return file_of(prefix, ".bin")


def index_path(prefix: Path) -> Path:
    """Return PREFIX.idx."""
    return file_of(prefix, ".idx")


def _mapped(path: Path) -> bytes | mmap.mmap:
    with os_errors_named(path), path.open("rb") as stream:
        size = stream.seek(0, 2)
        # An empty file cannot be mapped; a directory or a pipe fails above or here with an OSError.
        return mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size else b""


class IndexedCorpus:
    """A memory-mapped corpus whose index has been checked against its data: no read can leave the file.

    Attributes:
        tokens: All tokens in file order, shape (num_tokens,), a view of PREFIX.bin.
        lengths: Tokens of each sequence, int32.
        offsets: Byte offset of each sequence in PREFIX.bin, int64.
        documents: Sequence boundaries of the documents, shape (num_documents + 1,), int64.
    """

    def __init__(self, prefix: Path | str, *, trusted: bool = False) -> None:
        """Map the two files; raise a `UserError` where one is missing or they do not describe one well-formed corpus.

        Of a `trusted` index, which has been checked or is too large for it, only the ends are looked at. Whatever it
        holds, tokens are taken from the mapped data alone.
        """
        self.prefix = Path(prefix)
        self.path = index_path(self.prefix)
        index, data = _mapped(self.path), _mapped(data_path(self.prefix))
        if len(index) < HEADER_BYTES:
            raise self._error(f"{len(index)} bytes: an index has at least {HEADER_BYTES}")
        if index[: len(MAGIC)] != MAGIC:
            raise self._error(f"starts with {index[: len(MAGIC)]!r}: a Megatron index starts with {MAGIC!r}")
        version, code, num_sequences, num_entries = struct.unpack_from("<QBQQ", index, len(MAGIC))
        if version != VERSION:
            raise self._error(f"version {version}: must be {VERSION}")
        if code not in DTYPES:
            raise self._error(f"token type code {code}: must be one of {', '.join(map(str, DTYPES))}")
        expected = HEADER_BYTES + 12 * num_sequences + 8 * num_entries
        modes = index[expected:] if num_sequences and len(index) == expected + num_sequences else b""
        if modes.count(0) != len(modes):
            raise self._error("a multimodal corpus with sequences that are not text: must have text alone")
        if len(index) != expected + len(modes):
            raise self._error(
                f"{len(index)} bytes: {num_sequences} sequences and {num_entries} document entries take {expected}"
            )
        self.dtype = DTYPES[code]
        if len(data) % self.dtype.itemsize:
            raise self._error(f"{data_path(self.prefix)} has {len(data)} bytes, not whole {self.dtype} tokens")
        self.num_sequences: int = num_sequences
        self.num_documents: int = num_entries - 1
        self.num_tokens = len(data) // self.dtype.itemsize
        self.tokens: npt.NDArray[np.integer[Any]] = np.frombuffer(data, dtype=self.dtype)
        at = HEADER_BYTES
        self.lengths = np.frombuffer(index, dtype="<i4", count=num_sequences, offset=at)
        at += 4 * num_sequences
        self.offsets = np.frombuffer(index, dtype="<i8", count=num_sequences, offset=at)
        at += 8 * num_sequences
        self.documents = np.frombuffer(index, dtype="<i8", count=num_entries, offset=at)
        self._check_sequences(max(num_sequences - _BLOCK, 0) if trusted else 0)
        self._check_documents(max(self.num_documents - _BLOCK, 0) if trusted else 0)

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}")

    def _check_sequences(self, first: int) -> None:
        # Sequences must lie back to back, as Megatron writes them: samples are then slices of one array, and the
        # offsets serve as the running sum of lengths that packing needs, without building one.
        expected, total = int(self.offsets[first]) if first else 0, self.num_tokens * self.dtype.itemsize
        for begin in range(first, self.num_sequences, _BLOCK):
            lengths = self.lengths[begin : begin + _BLOCK].astype(np.int64)
            if lengths.min() < 0:
                at = begin + int(np.argmax(lengths < 0))
                raise self._error(f"sequence {at} has length {self.lengths[at]}: must not be negative")
            sizes = lengths * self.dtype.itemsize
            starts = expected + np.cumsum(sizes) - sizes
            wrong = np.flatnonzero(self.offsets[begin : begin + _BLOCK] != starts)
            if wrong.size:
                at = begin + int(wrong[0])
                raise self._error(
                    f"sequence {at} starts at byte {self.offsets[at]}: must start at {starts[wrong[0]]}, after the one "
                    "before"
                )
            expected = int(starts[-1] + sizes[-1])
            if expected > total:
                break
        if expected != total:
            raise self._error(f"describes {expected} bytes of tokens, but {data_path(self.prefix)} has {total}")

    def _check_documents(self, first: int) -> None:
        if self.num_documents < 0 or self.documents[0] != 0 or self.documents[-1] != self.num_sequences:
            raise self._error(f"document entries must run from 0 to the number of sequences, {self.num_sequences}")
        for begin in range(first, self.num_documents, _BLOCK):
            block = self.documents[begin : begin + _BLOCK + 1]
            if (block[1:] < block[:-1]).any():
                raise self._error(f"document entries after {begin} decrease: they must not")

    def start_of(self, document: int) -> int:
        """Return the position in `tokens` at which a document in [0, num_documents] starts (or all end)."""
        sequence = int(self.documents[document])
        if sequence == self.num_sequences:
            return self.num_tokens
        # Of a trusted index only the ends have been looked at.
        if not 0 <= sequence < self.num_sequences:
            raise self._error(f"document entry {document} is {sequence}: must be in [0, {self.num_sequences}]")
        start = int(self.offsets[sequence]) // self.dtype.itemsize
        if not 0 <= start <= self.num_tokens:
            raise self._error(f"sequence {sequence} starts at token {start}: must be in [0, {self.num_tokens}]")
        return start

    def document(self, document: int) -> npt.NDArray[np.integer[Any]]:
        """Return the tokens of one document, a view of shape (its length,)."""
        start, end = self.start_of(document), self.start_of(document + 1)
        if start > end:
            raise self._error(f"document {document} ends at token {end}, before its start at {start}")
        return self.tokens[start:end]
