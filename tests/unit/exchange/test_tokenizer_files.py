"""transformers gives every text the ids that training gave it."""

import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

from megaqk.corpus.prepare import builtin_file
from megaqk.corpus.shards import iterate_texts
from megaqk.corpus.sources import find_sources
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError
from megaqk.exchange.tokenizer_files import fast_tokenizer, write_tokenizer
from tests.unit.exchange.made import TEXTS, write_sentencepiece


def texts(count: int) -> list[str]:
    """Of the shipped text, its lines, and mixtures of what is rare."""
    source = find_sources([str(builtin_file())], key="data.text", text_field="text")
    lines = [
        line
        for _, text in zip(range(10), iterate_texts(source, skip_bad=False), strict=False)
        for line in text.split("\n")
    ]
    draw = random.Random(1)
    alphabet = "ab  \n\t1234.,<>|_äß漢🙂\u0301\u00a0\ufeffé" + "".join(map(chr, range(32, 127)))
    mixtures = ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(count)]
    return [*TEXTS, *draw.sample(lines, count), *mixtures]


def loaded(folder: Path, path: Path) -> Any:
    tokenizer = load_tokenizer(path)
    write_tokenizer(folder, tokenizer, tokenizer.eod_id, 128)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece(kind: str, bpe: Path, tmp_path: Path) -> None:
    path = bpe if kind == "bpe" else write_sentencepiece(tmp_path / "tokenizer.model", kind)
    ours, theirs = load_tokenizer(path), loaded(tmp_path, path)
    assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
    for text in [*texts(300), "a <|mark|><|mark|> b"]:
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids, repr(text)
        assert theirs.decode(ids) == text.replace("\u2581", " ")
    assert list(theirs("once upon")) == ["input_ids", "attention_mask"]
    assert theirs.eos_token_id == ours.eod_id
    assert len(theirs) == ours.vocab_size
    assert theirs.decode([*ours.encode("the end"), ours.eod_id], skip_special_tokens=True) == "the end"


def test_a_tokenizer_json_without_what_training_left_out(tmp_path: Path) -> None:
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False)
    fast.train_from_iterator(texts(50), trainer)
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast.enable_truncation(5)
    fast.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    theirs = loaded(tmp_path, tmp_path / "tokenizer.json")
    for text in [*texts(100), "spelled out </s> and <s>"]:
        assert theirs(text)["input_ids"] == ours.encode(text).tolist(), repr(text)
    assert theirs.eos_token == "</s>"


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("normalizer_spec.precompiled_charsmap", b"x", "normalizer = a map of characters: must be none"),
        ("normalizer_spec.add_dummy_prefix", True, "add_dummy_prefix = True: must be False"),
        ("normalizer_spec.remove_extra_whitespaces", True, "remove_extra_whitespaces = True: must be False"),
        ("trainer_spec.treat_whitespace_as_suffix", True, "treat_whitespace_as_suffix = True: must be False"),
        ("trainer_spec.model_type", 3, "model_type = 3: must be bpe or unigram"),
    ],
)
def test_what_sentencepiece_does_to_texts_is_refused(
    where: str, value: Any, line: str, bpe: Path, tmp_path: Path
) -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(bpe.read_bytes())
    section, key = where.split(".")
    setattr(getattr(proto, section), key, value)
    tokenizer = load_tokenizer(bpe)
    tokenizer.path = tmp_path / "changed.model"
    tokenizer.path.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=f"changed.model: {line}, for its ids to be the same"):
        fast_tokenizer(tokenizer)
