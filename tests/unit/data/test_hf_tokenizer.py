import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megaqk.config.data import DataConfig
from megaqk.corpus.prepare import prepare
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError
from tests.unit.corpus.test_cli import megaqk

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
        _ = load_tokenizer(path).eod_id
    with pytest.raises(UserError, match=r"vocab.txt: a tokenizer must be a sentencepiece .model or a tokenizer.json"):
        load_tokenizer(tmp_path / "vocab.txt")


def foreign(path: Path, end: str) -> Path:
    """Give the end of document another name."""
    path.write_text(path.read_text().replace("<|endoftext|>", end), encoding="utf-8")
    return path


@pytest.mark.parametrize("end", ["<\uff5cend\u2581of\u2581sentence\uff5c>", "<EOS_TOKEN>"])
def test_ends_of_common_families_are_found(path: Path, end: str) -> None:
    tokenizer = load_tokenizer(foreign(path, end))
    assert tokenizer.piece(tokenizer.eod_id) == end


def test_any_token_can_be_named_as_the_end(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(path, "<|fin|>")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = {"text": str(tmp_path / "t.jsonl"), "tokenizer": str(path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"no end-of-document token: .* or name its own with --eod-token or data.eod"):
        prepare(DataConfig(**config))
    with pytest.raises(UserError, match=r"tokenizer.json: has no token <eod>, which --eod-token or data.eod_token"):
        prepare(DataConfig(**config, eod_token="<eod>"))
    prepared = prepare(DataConfig(**config, eod_token="<|fin|>"))
    tokenizer = load_tokenizer(path, "<|fin|>")
    corpus = IndexedCorpus(prepared.corpora[0])
    assert prepared.eod_id == tokenizer.eod_id == corpus.document(0)[-1]
    assert tokenizer.decode(corpus.document(0)) == TEXTS[0]
    # The same tokenizer with another end is another corpus, here and in the command.
    padded = prepare(DataConfig(**config, eod_token="<pad>"))
    assert padded.corpora != prepared.corpora
    assert padded.eod_id != prepared.eod_id
    out = ("--tokenizer", path, "--output", tmp_path / "c")
    megaqk("data", "prepare", tmp_path / "t.jsonl", *out, "--eod-token", "<|fin|>", "--workers", 1)
    with pytest.raises(UserError, match=r"c.bin: exists and was made from other inputs"):
        megaqk("data", "prepare", tmp_path / "t.jsonl", *out, "--eod-token", "<pad>", "--workers", 1)
    assert (tmp_path / "c.bin").read_bytes() == prepared.corpora[0].with_suffix(".bin").read_bytes()
    capsys.readouterr()
    megaqk("data", "inspect", tmp_path / "c", "--tokenizer", path, "--eod-token", "<|fin|>")
    assert f"document 0: {TEXTS[0]!r}" in capsys.readouterr().out


def test_worker_processes_know_the_end(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for workers in (1, 2):
        rest = ("--output", tmp_path / f"c{workers}", "--eod-token", "<pad>", "--workers", workers)
        megaqk("data", "prepare", tmp_path / "t.jsonl", "--tokenizer", path, *rest)
    assert (tmp_path / "c1.bin").read_bytes() == (tmp_path / "c2.bin").read_bytes()


def test_a_tokenizer_without_an_end_can_be_looked_at(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(path, "<|fin|>")
    megaqk("tokenizer", "inspect", path)
    assert "end of document  none with a known name: one must be named" in capsys.readouterr().out
    megaqk("tokenizer", "inspect", path, "--eod-token", "<|fin|>")
    assert "end of document  1 '<|fin|>'" in capsys.readouterr().out


@pytest.mark.parametrize("symbols", [["<end>"], []])
def test_a_sentencepiece_model_without_an_end(tmp_path: Path, symbols: list[str]) -> None:
    import sentencepiece

    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "t.txt"), model_prefix=str(tmp_path / "m"), vocab_size=36, bos_id=-1, eos_id=-1,
        user_defined_symbols=symbols, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"m.model: no end-of-document token: must have one of an eos id"):
        _ = load_tokenizer(tmp_path / "m.model").eod_id
    if not symbols:
        with pytest.raises(UserError, match=r"m.model: has no token <end>, which --eod-token"):
            load_tokenizer(tmp_path / "m.model", "<end>")
        return
    tokenizer = load_tokenizer(tmp_path / "m.model", "<end>")
    assert tokenizer.piece(tokenizer.eod_id) == "<end>"
    assert tokenizer.decode([*tokenizer.encode("The raven"), tokenizer.eod_id]) == "The raven"


def test_an_end_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eod_token = <pad>: needs tokenizer"):
        DataConfig(text="x", eod_token="<pad>")


def test_a_prepared_corpus_knows_its_end(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for end in ("<pad>", "<|endoftext|>"):
        rest = ("--output", tmp_path / end.strip("<|>"), "--eod-token", end, "--workers", 1)
        megaqk("data", "prepare", tmp_path / "t.jsonl", "--tokenizer", path, *rest)
    pad, named = {"corpus": str(tmp_path / "pad")}, {"tokenizer": str(path), "eod_token": "<|endoftext|>"}
    assert prepare(DataConfig(**pad, tokenizer=str(path))).eod_id == 0
    with pytest.raises(UserError, match=r"<\|endoftext\|>: the documents of .*pad end with token 0 '<pad>'"):
        prepare(DataConfig(**pad, **named))
    sources = [{"corpus": str(tmp_path / name), "weight": 1} for name in ("pad", "endoftext")]
    with pytest.raises(UserError, match=r"eod_token = null: the documents of .*endoftext end with token 1 .*must be 0"):
        prepare(DataConfig(sources=sources, tokenizer=str(path)))
