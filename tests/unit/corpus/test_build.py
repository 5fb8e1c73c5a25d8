"""Building a corpus: the same bytes however it is divided, and what is refused."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megaqk.corpus import build
from megaqk.corpus.encoding import Recipe
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError
from megaqk.runtime.locks import exclusive_lock
from tests.unit.corpus.building import FILES, contents, make, on_threads, text

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_one_file_keeps_its_order(tmp_path: Path, recipe: Recipe) -> None:
    manifest = make(tmp_path, recipe, "out", "c")
    corpus = IndexedCorpus(tmp_path / "out")
    tokenizer = load_tokenizer(recipe.tokenizer)
    assert [tokenizer.decode(corpus.document(i)) for i in range(90)] == [text("c", i) for i in range(90)]
    assert (manifest.documents, manifest.tokens) == (90, corpus.num_tokens)


def test_all_documents_of_several_files_are_there(tmp_path: Path, recipe: Recipe) -> None:
    make(tmp_path, recipe)
    corpus = IndexedCorpus(tmp_path / "out")
    tokenizer = load_tokenizer(recipe.tokenizer)
    texts = [tokenizer.decode(corpus.document(i)) for i in range(corpus.num_documents)]
    assert sorted(texts) == sorted(text(name, i) for name, count in FILES.items() for i in range(count))
    for name, count in FILES.items():
        assert [one for one in texts if one.startswith(name)] == [text(name, i) for i in range(count)]


@pytest.mark.parametrize("inputs", [("c",), tuple(FILES)])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_ranks_makes_the_same_bytes(
    tmp_path: Path, recipe: Recipe, inputs: tuple[str, ...], size: int
) -> None:
    alone = make(tmp_path, recipe, "alone", *inputs)
    together = on_threads(size, lambda comm: make(tmp_path, recipe, "together", *inputs, comm=comm))
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    for manifest in together:
        assert (manifest.documents, manifest.tokens) == (alone.documents, alone.tokens)
    assert (together[0].data, together[0].index) == (alone.data, alone.index)


def test_workers_make_the_same_bytes(tmp_path: Path, recipe: Recipe) -> None:
    make(tmp_path, recipe, "one")
    make(tmp_path, recipe, "two", workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_more_files_than_shards(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaqk.corpus.shards.MAX_SHARDS", 2)
    make(tmp_path, recipe, "alone")
    on_threads(3, lambda comm: make(tmp_path, recipe, "together", comm=comm))
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert IndexedCorpus(tmp_path / "alone").num_documents == sum(FILES.values())


def test_a_finished_corpus_is_found_again(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path, recipe)
    monkeypatch.setattr(build, "encode_in_order", None)
    assert make(tmp_path, recipe) == first


@pytest.mark.parametrize("size", [1, 3])
def test_a_bad_line_stops_every_rank_and_can_be_skipped(tmp_path: Path, recipe: Recipe, size: int) -> None:
    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    lines[70] = lines[70][:9]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    errors = on_threads(size, lambda comm: make(tmp_path, recipe, comm=comm))
    for error in errors:
        assert isinstance(error, UserError)
        assert "c.jsonl, line 71: malformed JSON" in str(error)
    assert not (tmp_path / "out.bin").exists()
    # The same command with the other policy goes on from there.
    kept = Recipe(recipe.tokenizer, "text", skip_bad=True)
    manifests = on_threads(size, lambda comm: make(tmp_path, kept, comm=comm))
    assert manifests[0].skipped == {"malformed JSON": 1}
    assert manifests[0].documents == sum(FILES.values()) - 1


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, recipe, "whole")
    real, calls = os.pwrite, []

    def pwrite(*args: Any) -> int:
        calls.append(args)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UserError, match=r"out\.bin\.partial: No space left on device"):
        make(tmp_path, recipe)
    assert not (tmp_path / "out.bin").exists()
    make(tmp_path, recipe)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_inputs_without_text_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n\n')
    with pytest.raises(UserError, match=r"empty.jsonl: no document with any text"):
        make(tmp_path, recipe, "out", "empty")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_overwriting_mends_a_corpus_that_was_damaged_since(tmp_path: Path, recipe: Recipe, suffix: str) -> None:
    manifest = make(tmp_path, recipe)
    whole = contents(tmp_path / "out")
    path = tmp_path / f"out{suffix}"
    rotten = bytearray(path.read_bytes())
    rotten[-1] ^= 1
    path.write_bytes(rotten)
    assert make(tmp_path, recipe) == manifest, "without overwriting sizes must do: a rerun does not read terabytes"
    assert make(tmp_path, recipe, overwrite=True) == manifest
    assert contents(tmp_path / "out") == whole


def test_overwriting_keeps_what_is_whole(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path, recipe)
    monkeypatch.setattr(build, "encode_in_order", None)
    assert make(tmp_path, recipe, overwrite=True) == manifest


def test_a_second_preparation_says_that_it_waits(
    tmp_path: Path, recipe: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    with exclusive_lock(tmp_path / ".out.lock"):
        second = threading.Thread(target=make, args=(tmp_path, recipe))
        second.start()
        said, deadline = "", time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capfd.readouterr().err
        assert said == f"{tmp_path / 'out'}: another process is making it, waiting for it to end\n"
        assert not (tmp_path / "out.bin").exists()
    second.join(60)
    assert (tmp_path / "out.bin").exists()


def test_a_foreign_corpus_is_not_overwritten(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "out.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out.bin: exists"):
        make(tmp_path, recipe)
    assert (tmp_path / "out.bin").read_bytes() == b"precious"
