"""Chunks of whole lines from plain or compressed files."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

_READ = 1 << 20
# Four compressed bytes can stand for 128 KiB, so a whole block might take all memory at once.
_ZSTD_FEED = 1 << 10
# The format's own limit: dumps of the web are compressed with `zstd --long=31`. Only what a frame uses is held.
_ZSTD_WINDOW = 1 << 31
_LONGEST_LINE = 1 << 30
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive documents of one input, not yet parsed.

    Attributes:
        origin: The input's name, for messages.
        first: Number of the first line or row, counting from 1.
        lines: Whole lines of JSON, or None where the documents are texts already.
        texts: Texts, or None where the documents are lines; None inside stands for a row without text.
        consumed: Share of the input that has been read with this chunk, in [0, 1]; None where its size is unknown.
    """

    origin: str
    first: int
    lines: bytes | None
    texts: tuple[str | None, ...] | None
    consumed: float | None


def _zstd_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    # zstandard's own stream reader takes a truncated file for a whole one, hence the frames are followed here.
    frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    decompressor = frames.decompressobj()
    fed = False
    while block := stream.read(_ZSTD_FEED):
        while block:
            if data := decompressor.decompress(block):
                yield data
            fed = True
            block = decompressor.unused_data
            if decompressor.eof:
                decompressor = frames.decompressobj()
                fed = False
    if fed:
        raise EOFError("the compressed data ends in the middle")


def _blocks(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _zstd_blocks(stream)
        return
    # None of these owns `stream`: it is closed where it was opened.
    readers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
        ".xz": lzma.LZMAFile,
        ".bz2": bz2.BZ2File,
    }
    opened = readers[path.suffix](stream) if path.suffix in readers else stream
    while block := opened.read(_READ):
        yield block


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the contents of a plain or compressed file in blocks of bounded size.

    Raises:
        UserError: The file cannot be read or its compressed data is damaged.
    """
    with os_errors_named(path), path.open("rb") as stream:
        try:
            yield from _blocks(path, stream)
        except _DAMAGE as error:
            raise UserError(f"{path}: damaged: {error}") from error


def line_chunks(path: Path, chunk_bytes: int) -> Iterator[Chunk]:
    """Cut a file into chunks that end with the first line end at or after `chunk_bytes` uncompressed bytes.

    Raises:
        UserError: The file cannot be read or its compressed data is damaged.
    """
    total = max(path.stat().st_size, 1)
    held: list[bytes] = []
    size, first = 0, 1
    with os_errors_named(path), path.open("rb") as stream:
        try:
            for block in _blocks(path, stream):
                held.append(block)
                size += len(block)
                if size < chunk_bytes or b"\n" not in block:
                    if size > _LONGEST_LINE:
                        raise UserError(f"{path}, from line {first}: no line end within {_LONGEST_LINE} bytes")
                    continue
                data, start = b"".join(held), 0
                # Blocks come in the reader's sizes, which must not decide where chunks end: cut by content alone.
                while len(data) - start >= chunk_bytes and (end := data.find(b"\n", start + chunk_bytes - 1) + 1):
                    yield Chunk(str(path), first, _unmarked(data[start:end], first), None, stream.tell() / total)
                    first += data.count(b"\n", start, end)
                    start = end
                held = [data[start:]]
                size = len(held[0])
        except _DAMAGE as error:
            raise UserError(f"{path}: damaged: {error}") from error
    if data := b"".join(held):
        yield Chunk(str(path), first, _unmarked(data, first), None, 1.0)


def _unmarked(data: bytes, first: int) -> bytes:
    return data.removeprefix(_BYTE_ORDER_MARK) if first == 1 else data
