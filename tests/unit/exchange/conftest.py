from pathlib import Path

import pytest

from tests.unit.exchange.made import write_sentencepiece


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("bpe") / "tokenizer.model", "bpe")
