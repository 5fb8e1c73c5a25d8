import json
import multiprocessing
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from megaqk.config.data import DataConfig
from megaqk.config.loading import build_config
from megaqk.corpus import prepare as module
from megaqk.corpus.prepare import open_data, prepare, prepares_quickly
from megaqk.data.identity import check_data_identity, data_identity
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.manifest import manifest_path
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError
from tests.corpora import write_corpus
from tests.unit.corpus.building import ThreadComm, on_threads

TEXTS = [
    f"Document {i} says\n{'word ' * (i % 7)}{oct(i * i * 7919)} and {'abcdefghij'[i % 10] * (i % 9)} ends {i * i}."
    for i in range(300)
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def make(text: Path, **keys: object) -> DataConfig:
    return DataConfig(text=str(text), **{"cache_dir": str(text.parent / "cache"), "vocab_size": 320, **keys})


def test_the_corpus_is_the_text(text: Path) -> None:
    prepared = prepare(make(text))
    assert prepared.tokenizer is not None
    tokenizer = load_tokenizer(prepared.tokenizer)
    corpus = IndexedCorpus(prepared.corpora[0])
    assert prepared.vocab_size == tokenizer.vocab_size == 320
    assert prepared.eod_id == tokenizer.eod_id
    assert [tokenizer.decode(corpus.document(i)) for i in range(corpus.num_documents)] == TEXTS
    assert all(corpus.document(i)[-1] == prepared.eod_id for i in range(corpus.num_documents))
    assert int((corpus.tokens == prepared.eod_id).sum()) == len(TEXTS)


def test_a_second_call_finds_the_first(text: Path) -> None:
    first = prepare(make(text))
    written = first.corpora[0].with_name("corpus.bin").stat().st_mtime_ns
    assert prepare(make(text)) == first
    assert first.corpora[0].with_name("corpus.bin").stat().st_mtime_ns == written
    assert prepare(make(text, vocab_size=330)).corpora != first.corpora


def test_a_damaged_cache_is_made_again(text: Path) -> None:
    prepared = prepare(make(text))
    data = prepared.corpora[0].with_name("corpus.bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:-2])
    assert prepare(make(text)) == prepared
    assert data.read_bytes() == whole
    for name in ("corpus.manifest.json", "tokenizer.model", "corpus.idx", "corpus.bin"):
        path = prepared.corpora[0].with_name(name)
        good = path.read_bytes()
        # The same size, a byte changed.
        path.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
        assert prepare(make(text)) == prepared
        assert path.read_bytes() == good, name


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 330), ("eod_id", 7), ("tokens", 1), ("documents", 3)])
def test_a_cached_manifest_that_was_changed_is_made_again(text: Path, key: str, value: int) -> None:
    prepared = prepare(make(text))
    path = manifest_path(prepared.corpora[0])
    good = path.read_bytes()
    path.write_text(json.dumps(json.loads(good) | {key: value}))
    assert prepare(make(text)) == prepared
    assert path.read_bytes() == good


def test_a_damaged_tokenizer_of_unfinished_work_is_trained_again(text: Path) -> None:
    prepared = prepare(make(text))
    assert prepared.tokenizer is not None
    good = prepared.tokenizer.read_bytes()
    # As a kill between the tokenizer and the end of the corpus leaves it.
    for path in prepared.corpora[0].parent.glob("corpus.*"):
        path.unlink()
    prepared.tokenizer.write_bytes(b"not a model")
    assert prepare(make(text)) == prepared
    assert prepared.tokenizer.read_bytes() == good


def test_a_file_in_place_of_the_cache_is_named(text: Path) -> None:
    directory = prepare(make(text)).corpora[0].parent
    for path in (directory, directory.parent):
        shutil.rmtree(path)
        path.write_text("")
        with pytest.raises(UserError, match=f"data.cache_dir = .*: {path} must be a directory: remove that file"):
            prepare(make(text))


def test_processes_that_start_together_agree(text: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.map(prepare, [make(text)] * 3, chunksize=1)
    assert results[0] == results[1] == results[2]
    leftovers = [path.name for path in (text.parent / "cache").iterdir()]
    assert len(leftovers) == 2, "the corpus and its lock"


def test_a_given_tokenizer_is_used(text: Path, tmp_path: Path) -> None:
    own = prepare(make(text)).tokenizer
    assert own is not None
    copy = tmp_path / "mine.model"
    copy.write_bytes(own.read_bytes())
    prepared = prepare(make(text, tokenizer=str(copy), vocab_size=4096))
    assert prepared.vocab_size == 320


def test_a_corpus_is_taken_with_its_own_tokenizer_only(text: Path, tmp_path: Path) -> None:
    prepared = prepare(make(text))
    corpus = str(prepared.corpora[0])
    assert prepare(DataConfig(corpus=corpus)).vocab_size == 320
    assert prepare(DataConfig(corpus=corpus, tokenizer=str(prepared.tokenizer))) == prepared
    other = prepare(make(text, vocab_size=330))
    with pytest.raises(UserError, match=r"data.tokenizer = .*: must be the tokenizer.model that made"):
        prepare(DataConfig(corpus=corpus, tokenizer=str(other.tokenizer)))
    prepared.corpora[0].with_name("corpus.manifest.json").unlink()
    with pytest.raises(UserError, match=r"data.tokenizer = null: must be given"):
        prepare(DataConfig(corpus=corpus))


def test_bad_documents_stop_or_are_skipped(text: Path) -> None:
    with text.open("a") as stream:
        stream.write('{"text": "cut o\n{"text": "last"}\n')
    with pytest.raises(UserError, match=r"text.jsonl, line 301: malformed JSON .*data.bad_documents: skip"):
        prepare(make(text))
    assert IndexedCorpus(prepare(make(text, bad_documents="skip")).corpora[0]).num_documents == 301


def test_a_corpus_of_unknown_origin_must_fit_the_tokenizer(text: Path) -> None:
    prepared = prepare(make(text))
    write_corpus(text.parent / "foreign", np.dtype("<u2"), [np.array([1, 319, 320])])
    with pytest.raises(UserError, match=r"foreign.bin: token 320 at position 2 is outside the vocabulary, \[0, 320\)"):
        prepare(DataConfig(corpus=str(text.parent / "foreign"), tokenizer=str(prepared.tokenizer)))


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_corpus_that_is_not_as_its_manifest_says_is_refused(text: Path, with_tokenizer: bool) -> None:
    prepared = prepare(make(text))
    given = DataConfig(corpus=str(prepared.corpora[0]), tokenizer=str(prepared.tokenizer) if with_tokenizer else None)
    data = prepared.corpora[0].with_name("corpus.bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:20] + b"\xff\x7f" + whole[22:])
    with pytest.raises(
        UserError, match=r"corpus.bin: token 32767 at position 10 is outside the vocabulary, \[0, 320\)"
    ):
        prepare(given)
    data.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"corpus.bin: \d+ bytes, corpus.manifest.json says \d+: it was changed or"):
        prepare(given)
    data.unlink()
    with pytest.raises(UserError, match=r"corpus.bin: No such file"):
        prepare(given)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 10**12, "vocab_size = 1000000000000: Input should be less than 2147483648"),
        ("vocab_size", -5, "vocab_size = -5: Input should be greater than or equal to 1"),
        ("eod_id", 9_000_000, "eod_id = 9000000: must be below vocab_size, 320"),
        ("eod_id", -3, "eod_id = -3: Input should be greater than or equal to 0"),
        ("tokens", 1, r"corpus.manifest.json: tokens = 1: must be \d+, which the corpus has"),
        ("documents", 301, "corpus.manifest.json: documents = 301: must be 300, which the corpus has"),
    ],
)
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_manifest_is_not_believed_blindly(
    text: Path, key: str, value: int, message: str, with_tokenizer: bool
) -> None:
    prepared = prepare(make(text))
    path = manifest_path(prepared.corpora[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    tokenizer = str(prepared.tokenizer) if with_tokenizer else None
    with pytest.raises(UserError, match=message) as refusal:
        prepare(DataConfig(corpus=str(prepared.corpora[0]), tokenizer=tokenizer))
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["corpus", "sources"])
def test_documents_cannot_be_kept_apart_without_their_ends(text: Path, key: str) -> None:
    prepared = prepare(make(text, separate_documents=True))
    corpus, bare = IndexedCorpus(prepared.corpora[0]), text.parent / "bare"
    write_corpus(bare, corpus.dtype, [corpus.document(number)[:-1] for number in range(300)])
    places = [str(bare)] if key == "corpus" else [str(prepared.corpora[0]), str(bare)]
    data = {"corpus": places[0]} if key == "corpus" else {"sources": [{"corpus": one, "weight": 1} for one in places]}
    config = DataConfig(**data, tokenizer=str(prepared.tokenizer))
    assert prepare(config).corpora[-1] == bare
    with pytest.raises(
        UserError, match=r"^data.separate_documents = true: document 0 of .*bare ends with token \d+, m"
    ):
        prepare(config.model_copy(update={"separate_documents": True}))
    prepare(DataConfig(corpus=str(prepared.corpora[0]), separate_documents=True))


def test_sources_share_a_tokenizer(text: Path, tmp_path: Path) -> None:
    prepared, other = prepare(make(text)), prepare(make(text, vocab_size=330))
    sources = [
        {"corpus": str(one.corpora[0]), "weight": 1, "name": name} for name, one in (("a", prepared), ("b", other))
    ]
    with pytest.raises(UserError, match=r"data.tokenizer = .*must be the tokenizer.model that made"):
        prepare(DataConfig(sources=sources, tokenizer=str(prepared.tokenizer)))
    both = prepare(DataConfig(sources=[sources[0], sources[0] | {"name": "c"}], tokenizer=str(prepared.tokenizer)))
    assert both.corpora == prepared.corpora * 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.text = .*absent.jsonl: must be a file, a pattern"):
        prepare(make(tmp_path / "absent.jsonl"))
    (tmp_path / "odd.pdf").write_text("x")
    with pytest.raises(UserError, match=r"odd.pdf: must end in"):
        prepare(make(tmp_path / "odd.pdf"))
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match=r"other.jsonl, line 1: no field text"):
        prepare(make(tmp_path / "other.jsonl"))


@pytest.mark.parametrize("keys", [{}, {"text": "a", "corpus": "b"}, {"text": "a", "split": [0.5, 0.1, 0.1]}])
def test_impossible_configurations_are_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"exactly one|add up to 1"):
        DataConfig(**keys)


def test_the_shipped_text_is_english(tmp_path: Path) -> None:
    prepared = prepare(DataConfig(text="builtin", cache_dir=str(tmp_path), vocab_size=512))
    assert prepared.tokenizer is not None
    corpus = IndexedCorpus(prepared.corpora[0])
    assert corpus.num_documents == 286
    words = load_tokenizer(prepared.tokenizer).decode(np.concatenate([corpus.document(i) for i in range(5)])).split()
    assert words.count("the") > len(words) * 0.03


def change(path: Path, at: int, to: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(to)


@pytest.mark.parametrize("key", ["corpus", "sources"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_given_corpus_that_was_changed_within_the_vocabulary_is_refused(text: Path, key: str, ranks: int) -> None:
    prepared = prepare(make(text))
    prefix, tokenizer = prepared.corpora[0], str(prepared.tokenizer)
    given = {"corpus": str(prefix)} if key == "corpus" else {"sources": [{"corpus": str(prefix), "weight": 1}]}
    config = DataConfig(**given, tokenizer=tokenizer)
    assert on_threads(ranks, lambda comm: prepare(config, comm)) == [prepared] * ranks
    change(prefix.with_name("corpus.bin"), 100, (259).to_bytes(2, "little"))
    for error in on_threads(ranks, lambda comm: prepare(config, comm)):
        assert isinstance(error, UserError)
        assert "corpus.bin: holds other bytes than corpus.manifest.json says: it was changed or damaged" in str(error)
        assert str(error).endswith("(rank 0)") == (ranks > 1)
    # What older versions made has no probes, and opens as it did.
    manifest = json.loads(manifest_path(prefix).read_text())
    for file in ("data", "index"):
        del manifest[file]["probes"]
    manifest_path(prefix).write_text(json.dumps(manifest))
    assert prepare(config) == prepared
    # A run that goes on notices all the same: its checkpoint knows what the bytes were.
    identities = []
    for change_to in (258, 259):
        change(prefix.with_name("corpus.bin"), 100, change_to.to_bytes(2, "little"))
        identities.append(data_identity(prepared, config, seed=1, global_batch_size=1, sequence_length=8))
    with pytest.raises(UserError, match="holds other tokens or documents than this run began with"):
        check_data_identity(*identities, samples=1)


def test_ranks_divide_what_is_read_at_the_start(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaqk.data.checksum.PROBE_BYTES", 64)
    prepared = prepare(make(text))
    size = prepared.corpora[0].with_name("corpus.bin").stat().st_size
    read: list[tuple[str, int]] = []
    real = os.pread

    def pread(descriptor: int, size: int, at: int) -> bytes:
        read.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, at))
        return real(descriptor, size, at)

    monkeypatch.setattr("megaqk.data.checksum.os.pread", pread)
    on_threads(3, lambda comm: prepare(DataConfig(corpus=str(prepared.corpora[0])), comm))
    assert len(read) == len(set(read)), "each byte once"
    assert sum(name == "corpus.bin" for name, _ in read) == min(-(-size // 64), 64)


def test_one_rank_prepares_a_text_for_all(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    real_build, real_read = module.build_corpus, module.read_manifest
    monkeypatch.setattr(module, "build_corpus", lambda *args, **keys: built.append(1) or real_build(*args, **keys))
    made = on_threads(3, lambda comm: prepare(make(text), comm))
    assert made == [prepare(make(text))] * 3
    assert built == [1]

    # Another node, without the shared directory.
    def apart(comm: ThreadComm) -> object:
        threading.current_thread().name = f"rank {comm.rank}"
        return prepare(make(text), comm)

    lost = "rank 2"
    monkeypatch.setattr(
        module, "read_manifest", lambda prefix: None if threading.current_thread().name == lost else real_read(prefix)
    )
    for error in on_threads(3, apart):
        assert isinstance(error, UserError)
        assert re.match(r"data.cache_dir = .*cache: has not the .* all nodes share \(rank 2\)$", str(error))


def test_what_a_run_and_a_check_have_is_the_same(text: Path) -> None:
    data = {"text": str(text), "cache_dir": str(text.parent / "cache"), "vocab_size": 320}
    config = build_config({"data": data, "training": {"sequence_length": 16, "seed": 3}})
    alone, splits = open_data(config)
    assert prepare(config.data) == alone
    for prepared, again in on_threads(2, lambda comm: open_data(config, comm)):
        assert prepared == alone
        assert again.train.read(np.arange(9)).tolist() == splits.train.read(np.arange(9)).tolist()
    config = build_config({"data": data, "training": {"sequence_length": 10**6}})
    with pytest.raises(UserError, match=r"^data.split = .*: train gets 285 of 300 documents"):
        open_data(config)


def test_only_a_large_text_is_left_to_the_start(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepares_quickly(make(text))
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    assert not prepares_quickly(make(text))
    prepare(make(text))
    assert prepares_quickly(make(text))
    assert prepares_quickly(DataConfig(corpus="anything"))
    for config, message in (
        (make(text, vocab_size=200), "^data.vocab_size = 200: must be at least 260"),
        (make(text, tokenizer=str(text.parent / "absent.model")), r"absent.model: No such file"),
        (make(text.parent / "absent.jsonl"), r"^data.text = .*absent.jsonl: must be a file, a pattern"),
        (make(text, cache_dir=str(text)), r"^data.cache_dir = .*: .*text.jsonl must be a directory"),
    ):
        with pytest.raises(UserError, match=message):
            prepares_quickly(config)
