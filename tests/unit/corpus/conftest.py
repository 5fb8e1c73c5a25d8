"""Fixtures of the tests that build corpora."""

import json
from pathlib import Path

import pytest

from megaqk.corpus.encoding import Recipe
from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.corpus import build
from tests.unit.corpus.building import FILES, text


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for name, count in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text(name, number)}) + "\n" for number in range(count))
        )
    path = tmp_path / "t.model"
    path.write_bytes(train_sentencepiece([text("abc", number) for number in range(99)], vocab_size=300))
    return Recipe(path, "text", skip_bad=False)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few lines, each journalled: a small input has many moments to be interrupted at."""
    monkeypatch.setattr("megaqk.corpus.sources.CHUNK_BYTES", 300)
    monkeypatch.setattr(build, "JOURNAL_EVERY_SECONDS", 0.0)
