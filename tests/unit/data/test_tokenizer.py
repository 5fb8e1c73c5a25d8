import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from megaqk.corpus.tokenizer_training import _sampled, train_sentencepiece
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError

WORDS = "once upon a midnight dreary while I pondered weak and weary over many a quaint curious volume".split()  # noqa: SIM905
TEXTS = [f"{WORDS[i % 16]} {WORDS[i * 7 % 16]} {WORDS[i * i % 15]}ing\nnumber {i}." for i in range(400)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    path.write_bytes(train_sentencepiece(TEXTS, vocab_size=400))
    return path


@pytest.mark.parametrize(
    "text", ["", " a", "two  spaces ", "\n\nlines\r\n", "tab\there", "日本語 ☃ \x00 é", "<|endoftext|>", "1234567"]
)
def test_every_text_comes_back(model: Path, text: str) -> None:
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eod_id]) == text


def test_a_batch_is_its_texts(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    batch = tokenizer.encode_batch(TEXTS[:20])
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text).tolist() for text in TEXTS[:20]]


def test_training_is_deterministic(model: Path) -> None:
    assert train_sentencepiece(TEXTS, vocab_size=400) == model.read_bytes()
    assert load_tokenizer(model).vocab_size == 400


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (100_000, "gives at most"),
        (50, "must be at least 260: every byte"),
        (265, "characters and bytes of this text alone take"),
    ],
)
def test_impossible_sizes_are_refused(size: int, message: str) -> None:
    with pytest.raises(UserError, match=f"data.vocab_size = {size}: .*{message}"):
        train_sentencepiece(TEXTS, vocab_size=size, vocab_size_key="data.vocab_size")


@pytest.mark.parametrize("texts", [[], ["", "\n\n"]])
def test_no_text_is_refused_by_name(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"^data.text = a.txt: must hold text to learn from$"):
        train_sentencepiece(texts, vocab_size=400, input_key="data.text = a.txt")


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.model: No such file"):
        load_tokenizer(tmp_path / "absent.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.model: not a sentencepiece model"):
        load_tokenizer(tmp_path / "bad.model")


@pytest.mark.parametrize("size", [0, 1, 100, 2000, -1])
def test_a_truncated_model_is_one_line(model: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "cut.model").write_bytes(model.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cut\.model: not a sentencepiece model$"):
        load_tokenizer(tmp_path / "cut.model")
    (tmp_path / "cut.json").write_bytes(b'{"version": "1.0"}'[:size])
    with pytest.raises(UserError, match=r"cut\.json: not a tokenizer.json$"):
        load_tokenizer(tmp_path / "cut.json")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_kinds_special_tokens_and_samples(tmp_path: Path, kind: Literal["bpe", "unigram"]) -> None:
    def train(**keys: int) -> bytes:
        return train_sentencepiece(TEXTS, vocab_size=300, kind=kind, special_tokens=["<call>"], **keys)

    (tmp_path / "t.model").write_bytes(train())
    tokenizer = load_tokenizer(tmp_path / "t.model")
    ids = tokenizer.encode("weary <call> lore")
    assert "<call>" in [tokenizer.piece(token) for token in ids]
    assert tokenizer.decode(ids) == "weary <call> lore"
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS)
    # A line of text is a sample; the draw does not change from run to run.
    assert train(sample_lines=300) == train(sample_lines=300) != train()


SAMPLED = """
import hashlib
from megaqk.corpus.tokenizer_training import train_sentencepiece
texts = (f"{'once upon a midnight dreary'.split()[i % 5]}{i * 7919 % 10007} and {i}" for i in range(3000))
print(hashlib.sha256(train_sentencepiece(texts, vocab_size=320, sample_lines=200)).hexdigest())
"""


def test_a_sample_is_the_same_in_every_process() -> None:
    made = [subprocess.check_output([sys.executable, "-c", SAMPLED], text=True, timeout=120) for _ in range(3)]
    assert len(made[0]) > 60
    assert len(set(made)) == 1


def test_every_line_is_as_likely_to_be_drawn() -> None:
    # Blocks of a thousand lines each give a tenth of the sample, within five standard deviations.
    drawn = _sampled((str(number) for number in range(10_000)), 2000)
    assert len(set(drawn)) == 2000
    assert all(abs(count - 200) < 65 for count in Counter(int(line) // 1000 for line in drawn).values())


@pytest.mark.parametrize("count", [1, 2, 399, 400, 401, 10**6])
def test_samples_of_any_size(count: int) -> None:
    lines = [str(number) for number in range(400)]
    drawn = _sampled(iter(lines), count)
    assert len(drawn) == min(count, 400)
    assert set(drawn) <= set(lines)
    if count >= 400:
        assert drawn == lines
