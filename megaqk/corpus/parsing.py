"""From a chunk of raw lines or rows to the texts worth tokenising."""

import json
from collections import Counter
from typing import NamedTuple

from megaqk.corpus.lines import Chunk
from megaqk.errors import UserError

EMPTY = "empty"


class Texts(NamedTuple):
    """The texts of a chunk in order, the line or row of each, and how many were left out by reason."""

    texts: list[str]
    numbers: list[int]
    skipped: Counter[str]


def _parse(line: bytes, text_field: str) -> tuple[str | None, str | None]:
    # Returns the text, or None and what is wrong with the line.
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, "invalid UTF-8"
    except (ValueError, RecursionError):
        return None, "malformed JSON"
    if not isinstance(record, dict):
        return None, "not a JSON object"
    if text_field not in record:
        return None, f"no field {text_field}"
    text = record[text_field]
    if text is None:
        return None, f"field {text_field} is null"
    return (text, None) if isinstance(text, str) else (None, f"field {text_field} is not a string")


def _encodable(text: str) -> bool:
    # JSON may escape half of a surrogate pair, which is no character and has no UTF-8.
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def bad_document(chunk: Chunk, number: int, wrong: str) -> UserError:
    """Return the error that stops the work at a document, of which the number is that of its line or row."""
    unit = "line" if chunk.texts is None else "row"
    return UserError(
        f"{chunk.origin}, {unit} {number}: {wrong} "
        "(--bad-documents skip, or data.bad_documents: skip, leaves such documents out and counts them)"
    )


def texts_of(chunk: Chunk, text_field: str, *, skip_bad: bool) -> Texts:
    """Parse a chunk; a malformed document is skipped and counted, or a `UserError` that names its line.

    Empty documents carry nothing to learn and are always left out and counted; blank lines are no documents.
    """
    found = Texts([], [], Counter())
    documents = (chunk.lines or b"").split(b"\n") if chunk.texts is None else chunk.texts
    for number, document in enumerate(documents, start=chunk.first):
        if isinstance(document, bytes):
            if not document.strip():
                continue
            text, wrong = _parse(document, text_field)
        else:
            text, wrong = (document, None) if document is not None else (None, f"field {text_field} is null")
        if text is not None and not _encodable(text):
            wrong = "invalid UTF-8"
        if wrong is not None:
            if not skip_bad:
                raise bad_document(chunk, number, wrong)
            found.skipped[wrong] += 1
        elif text:
            found.texts.append(text)
            found.numbers.append(number)
        else:
            found.skipped[EMPTY] += 1
    return found
