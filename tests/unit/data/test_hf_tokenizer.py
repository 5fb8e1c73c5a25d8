import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megaqk.config.data import DataConfig
from megaqk.data import load_tokenizer, prepare
from megaqk.data.indexed import IndexedCorpus
from megaqk.errors import UserError

TEXTS = [f"The raven number {i} said nevermore\n{'again ' * (i % 5)}" for i in range(60)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # The library's own GPT-2 recipe, with settings that must not reach a corpus: truncation, padding, a template.
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_texts_come_back_whole(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    for text in (*TEXTS, "", " leading", "日本語 ☃", "<|endoftext|> spelled out"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod_id not in ids
    assert tokenizer.piece(tokenizer.eod_id) == "<|endoftext|>"
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == [tokenizer.encode(t).tolist() for t in TEXTS]


def test_it_prepares_a_corpus(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = DataConfig(text=str(tmp_path / "t.jsonl"), tokenizer=str(path), cache_dir=str(tmp_path / "cache"))
    prepared = prepare(config)
    tokenizer = load_tokenizer(path)
    corpus = IndexedCorpus(prepared.corpora[0])
    assert [tokenizer.decode(corpus.document(i)) for i in range(corpus.num_documents)] == TEXTS
    assert corpus.document(0)[-1] == tokenizer.eod_id


def test_the_vocabulary_reaches_the_largest_id(path: Path) -> None:
    described = json.loads(path.read_text())
    assert load_tokenizer(path).vocab_size == len(described["model"]["vocab"]) > 300
    described["added_tokens"].append(
        {"id": 900, "content": "<extra>", "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
    )
    described["model"]["vocab"]["<extra>"] = 900
    path.write_text(json.dumps(described))
    assert load_tokenizer(path).vocab_size == 901


def test_unusable_files_are_named(path: Path, tmp_path: Path) -> None:
    for content in ("", "{}", "[1]", "\xff\x00"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=r"bad.json: not a tokenizer.json"):
            load_tokenizer(tmp_path / "bad.json")
    path.write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(UserError, match=r"tokenizer.json: no end-of-document token: must have one of"):
        load_tokenizer(path)
    with pytest.raises(UserError, match=r"vocab.txt: a tokenizer must be a sentencepiece .model or a tokenizer.json"):
        load_tokenizer(tmp_path / "vocab.txt")
