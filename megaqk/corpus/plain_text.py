"""Documents of plain text files."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from megaqk.corpus.lines import read_blocks

TextUnit = Literal["document", "paragraph", "line"]


def _decoded(path: Path) -> Iterator[str]:
    # What is no UTF-8 becomes surrogates, which `documents` refuses or skips, document by document.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("surrogateescape"), translate=True)
    for block in read_blocks(path):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def text_documents(path: Path, unit: TextUnit) -> Iterator[str]:
    """Yield the documents of a plain or compressed text: all of it, or what empty lines or line ends divide.

    Line ends of any system become newlines; a document with bytes that are no UTF-8 has surrogates in their place.

    Raises:
        UserError: The file cannot be read or its compressed data is damaged.
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
