from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megaqk.corpus.encoding import Recipe, encode_chunk
from megaqk.corpus.lines import Chunk
from megaqk.data.tokenizer import HuggingFaceTokenizer
from megaqk.errors import UserError


class Letters:
    """A tokenizer whose end of document is a letter."""

    path = Path("letters")
    vocab_size = 256
    eod_id = ord("$")

    def encode(self, text: str) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Any) -> str:
        return bytes(ids).decode()

    def piece(self, token: int) -> str:
        return chr(token)


CHUNK = Chunk("f.jsonl", 7, b'{"text": "ab"}\n\n{"text": "c$d"}\n{"text": "$"}\n{"text": "e"}\n', None, 1.0)


def test_an_end_of_document_inside_a_document_is_named() -> None:
    with pytest.raises(
        UserError, match=r"f.jsonl, line 9: encodes to the end-of-document token \(--bad-documents skip"
    ):
        encode_chunk(CHUNK, Recipe(Path("letters"), "text", skip_bad=False), Letters())


def test_documents_with_an_end_inside_are_skipped_and_counted() -> None:
    encoded = encode_chunk(CHUNK, Recipe(Path("letters"), "text", skip_bad=True), Letters())
    assert bytes(encoded.tokens.astype(np.uint8)) == b"ab$e$"
    assert encoded.lengths.tolist() == [3, 2]
    assert encoded.skipped == {"encodes to the end-of-document token": 2}


def test_a_hugging_face_vocabulary_may_spell_the_end_of_document(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import models

    vocabulary = {"</s>": 0, "a": 1, "[UNK]": 2}
    tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")).save(str(tmp_path / "t.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path / "t.json")
    chunk = Chunk("f", 1, None, ("a", "</s>"), 1.0)
    with pytest.raises(UserError, match="f, row 2: encodes to the end-of-document token"):
        encode_chunk(chunk, Recipe(tmp_path / "t.json", "text", skip_bad=False), tokenizer)
