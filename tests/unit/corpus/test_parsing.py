import json

import pytest

from megaqk.corpus.lines import Chunk
from megaqk.corpus.parsing import texts_of
from megaqk.errors import UserError

BAD = {
    b'{"text": "cut o': "malformed JSON",
    b"[" * 100_000: "malformed JSON",
    b'["text"]': "not a JSON object",
    b'{"body": "b"}': "no field text",
    b'{"text": 3}': "field text is not a string",
    b'{"text": null}': "field text is null",
    b'{"text": "\xff"}': "invalid UTF-8",
    b'{"text": "\\ud800"}': "invalid UTF-8",
}


def chunk(*lines: bytes) -> Chunk:
    return Chunk("f.jsonl", 11, b"\n".join(lines) + b"\n", None, 1.0)


def test_texts_come_in_order_and_blank_lines_are_nothing() -> None:
    texts = ["one", "two\nlines", "drei \u2028 \u00fc \U0001f600"]
    lines = [json.dumps({"text": text, "id": 1}).encode() for text in texts]
    lined = chunk(lines[0], b"", lines[1], b"  \r", lines[2])
    assert texts_of(lined, "text", skip_bad=False) == (texts, [11, 13, 15], {})
    assert texts_of(Chunk("d", 1, None, tuple(texts), 1.0), "text", skip_bad=False) == (texts, [1, 2, 3], {})


@pytest.mark.parametrize(("line", "wrong"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_line_is_named(line: bytes, wrong: str) -> None:
    with pytest.raises(UserError, match=f"f.jsonl, line 13: {wrong}"):
        texts_of(chunk(b'{"text": "good"}', b"", line), "text", skip_bad=False)


def test_bad_lines_can_be_skipped_and_counted() -> None:
    lines = [line for bad in BAD for line in (bad, b'{"text": "good"}')]
    texts, _, skipped = texts_of(chunk(*lines), "text", skip_bad=True)
    assert texts == ["good"] * len(BAD)
    assert skipped == {
        "malformed JSON": 2,
        "not a JSON object": 1,
        "no field text": 1,
        "field text is not a string": 1,
        "field text is null": 1,
        "invalid UTF-8": 2,
    }


def test_empty_documents_are_counted_never_refused() -> None:
    assert texts_of(chunk(b'{"text": ""}', b'{"text": "a"}'), "text", skip_bad=False) == (["a"], [12], {"empty": 1})


def test_rows_are_numbered() -> None:
    with pytest.raises(UserError, match="d, row 8: field text is null"):
        texts_of(Chunk("d", 7, None, ("a", None), 1.0), "text", skip_bad=False)
