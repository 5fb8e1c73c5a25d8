"""Chunks of whole lines, and documents of plain text, from plain or compressed files."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

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
TextUnit = Literal["document", "paragraph", "line"]


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive documents of one input, not yet parsed: whole lines of JSON, or texts already."""

    origin: str  # the input's name, for messages
    first: int  # the number of the first line or row, counting from 1
    lines: bytes | None
    texts: tuple[str | None, ...] | None  # None inside stands for a row without text
    consumed: float | None  # share of the input that has been read with this chunk; None where its size is unknown


def _zstd_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    # zstandard's own stream reader takes a truncated file for a whole one, hence the frames are followed here.
    frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    decompressor, fed = frames.decompressobj(), False
    while block := stream.read(_ZSTD_FEED):
        while block:
            if data := decompressor.decompress(block):
                yield data
            fed, block = True, decompressor.unused_data
            if decompressor.eof:
                decompressor, fed = frames.decompressobj(), False
    if fed:
        raise EOFError("the compressed data ends in the middle")


def _blocks(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    if path.suffix == ".zst":
        return _zstd_blocks(stream)
    # None of these owns `stream`: it is closed where it was opened.
    readers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
        ".xz": lzma.LZMAFile,
        ".bz2": bz2.BZ2File,
    }
    opened = readers[path.suffix](stream) if path.suffix in readers else stream
    return iter(lambda: opened.read(_READ), b"")


def read_blocks(path: Path) -> Iterator[tuple[bytes, float]]:
    """Yield the contents of a plain or compressed file in blocks of bounded size, each with the share of it read."""
    with os_errors_named(path), path.open("rb") as stream:
        total = max(path.stat().st_size, 1)
        try:
            for block in _blocks(path, stream):
                yield block, stream.tell() / total
        except _DAMAGE as error:
            raise UserError(f"{path}: damaged: {error}") from error


def line_chunks(path: Path, chunk_bytes: int) -> Iterator[Chunk]:
    """Cut a file into chunks that end with the first line end at or after `chunk_bytes` uncompressed bytes."""
    held: list[bytes] = []
    size, first = 0, 1
    for block, share in read_blocks(path):
        held.append(block)
        size += len(block)
        if size < chunk_bytes or b"\n" not in block:
            if size > _LONGEST_LINE:
                raise UserError(f"{path}, from line {first}: no line end within {_LONGEST_LINE} bytes")
            continue
        data, start = b"".join(held), 0
        # Blocks come in the reader's sizes, which must not decide where chunks end: cut by content alone.
        while len(data) - start >= chunk_bytes and (end := data.find(b"\n", start + chunk_bytes - 1) + 1):
            yield Chunk(str(path), first, _unmarked(data[start:end], first), None, share)
            first += data.count(b"\n", start, end)
            start = end
        held = [data[start:]]
        size = len(held[0])
    if data := b"".join(held):
        yield Chunk(str(path), first, _unmarked(data, first), None, 1.0)


def _unmarked(data: bytes, first: int) -> bytes:
    return data.removeprefix(_BYTE_ORDER_MARK) if first == 1 else data


def is_blank(path: Path) -> bool:
    """Tell whether a file holds nothing but white space."""
    return not any(block.strip() for block, _ in read_blocks(path))


def holds_json_lines(path: Path) -> bool:
    """Tell whether a .json file is one object a line."""
    # An array starts otherwise, and the first line of an object that is spread over lines ends in the middle of it.
    for block, _ in read_blocks(path):
        if start := block.removeprefix(_BYTE_ORDER_MARK).strip():
            return start[:1] == b"{" and start.split(b"\n")[0].strip()[-1:] not in (b"{", b"[", b",", b":")
    return False


def _decoded(path: Path) -> Iterator[str]:
    # What is no UTF-8 becomes surrogates, which `parsing` refuses or skips, document by document.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("surrogateescape"), translate=True)
    for block, _ in read_blocks(path):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def text_documents(path: Path, unit: TextUnit) -> Iterator[str]:
    """Yield the documents of a plain or compressed text: all of it, or what empty lines or line ends divide.

    Line ends of any system become newlines; a document with bytes that are no UTF-8 has surrogates in their place.
    """
    if unit == "document":
        yield "".join(_decoded(path))
        return
    separator = "\n" if unit == "line" else "\n\n"
    held = [""]
    for piece in _decoded(path):
        # Joined only where something ends, or a long document would be copied again with every block.
        last = held[-1][-1:]
        held.append(piece)
        if separator in last + piece:
            *whole, rest = "".join(held).split(separator)
            yield from (document for document in whole if document or unit == "line")
            held = [rest]
    if rest := "".join(held):
        yield rest
