import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest

from megaqk.corpus.arguments import add_commands
from megaqk.corpus.inspection import first_documents
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.manifest import manifest_path
from megaqk.data.tokenizer import load_tokenizer
from megaqk.data.verification import check_tokens
from megaqk.errors import UserError
from tests.corpora import write_corpus

TEXTS = [f"A document about {i} and {oct(i * 7919)}.\nIt ends {'so ' * (i % 5)}here." for i in range(40)]


def megaqk(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    parsed = parser.parse_args(list(map(str, arguments)))
    return int(parsed.run(parsed))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Prepare a corpus the way a user does."""
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    megaqk("tokenizer", "train", tmp_path / "t.jsonl", "--output", tmp_path / "t.model", "--vocab-size", 320)
    out = tmp_path / "corpus" / "c"
    megaqk("data", "prepare", tmp_path / "t.jsonl", "--tokenizer", tmp_path / "t.model", "--output", out)
    return out


def test_prepare_says_what_it_made(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A second time: it is found.
    megaqk("data", "prepare", tmp_path / "t.jsonl", "--tokenizer", tmp_path / "t.model", "--output", corpus)
    said = capsys.readouterr().out
    assert f"{corpus}: 40 documents, {IndexedCorpus(corpus).num_tokens:,} tokens" in said


def test_inspect_a_tokenizer(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    megaqk("tokenizer", "inspect", tmp_path / "t.model", tmp_path / "t.jsonl", "--pieces", 3)
    said = capsys.readouterr().out
    words, size = sum(len(text.split()) for text in TEXTS), sum(map(len, TEXTS))
    tokens = IndexedCorpus(corpus).num_tokens - len(TEXTS)
    assert f"{tokens / words:.3f} tokens per word, {size / tokens:.3f} bytes per token" in said
    assert "not given back   0 documents" in said
    assert "'<unk>'" in said


def test_inspect_a_corpus(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    megaqk("data", "inspect", corpus, "--tokenizer", tmp_path / "t.model", "--documents", 2, "--verify")
    said = capsys.readouterr().out
    for part in ("documents        40", "checksums        as in", "all in [0, 320)", repr(TEXTS[0]), repr(TEXTS[1])):
        assert part in said


def test_damage_is_found(corpus: Path) -> None:
    data = bytearray(corpus.with_suffix(".bin").read_bytes())
    data[100] ^= 1
    corpus.with_suffix(".bin").write_bytes(data)
    with pytest.raises(UserError, match=r"c.bin: its checksum is not the manifest's"):
        megaqk("data", "inspect", corpus, "--verify")
    manifest_path(corpus).unlink()
    megaqk("data", "inspect", corpus, "--verify")


def test_tokens_outside_the_vocabulary_are_found(tmp_path: Path) -> None:
    tokens = list(range(5000))
    tokens[4321] = 60_000
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.array(tokens)])
    opened = IndexedCorpus(tmp_path / "c")
    check_tokens(opened, 60_001)
    with pytest.raises(UserError, match=r"c.bin: token 60000 at position 4321 is outside the vocabulary, \[0, 60000\)"):
        check_tokens(opened, 60_000)


def test_a_sampled_check_looks_everywhere(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.repeat([1, 9], 5000)])
    with pytest.raises(UserError, match=r"token 9 at position 5\d\d\d "):
        check_tokens(IndexedCorpus(tmp_path / "c"), 9, at_most=2048)


def test_split_and_merge_are_inverse(corpus: Path, tmp_path: Path) -> None:
    megaqk("data", "split", corpus, "--part", "a=0.5", "--part", "b=0.25", "--part", "c=0.25", "--output", corpus)
    parts = [corpus.with_name(f"c-{name}") for name in "abc"]
    assert [IndexedCorpus(part).num_documents for part in parts] == [20, 10, 10]
    megaqk("data", "merge", *parts, "--output", tmp_path / "again")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"again{suffix}").read_bytes() == corpus.with_suffix(suffix).read_bytes()
    megaqk("data", "inspect", tmp_path / "again", "--verify")


def test_corpora_that_do_not_go_together_are_not_merged(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "wide", np.dtype("<i4"), [np.array([1, 2])])
    with pytest.raises(UserError, match=r"wide.idx: holds int32 tokens, .*c.idx uint16"):
        megaqk("data", "merge", corpus, tmp_path / "wide", "--output", tmp_path / "out")
    megaqk("tokenizer", "train", tmp_path / "t.jsonl", "--output", tmp_path / "u.model", "--vocab-size", 310)
    other = tmp_path / "other"
    megaqk("data", "prepare", tmp_path / "t.jsonl", "--tokenizer", tmp_path / "u.model", "--output", other)
    with pytest.raises(UserError, match=r"other.idx: was made with another tokenizer"):
        megaqk("data", "merge", corpus, other, "--output", tmp_path / "out")
    with pytest.raises(UserError, match=r"other.bin: exists"):
        megaqk("data", "merge", corpus, "--output", other)
    assert not (tmp_path / "out.bin").exists()


def test_a_corpus_may_be_renamed(corpus: Path, tmp_path: Path) -> None:
    for path in corpus.parent.glob("c.*"):
        path.rename(tmp_path / path.name.replace("c.", "new.name.", 1))
    megaqk("data", "inspect", tmp_path / "new.name", "--verify")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '"format": 7', '"size": "a"'])
def test_a_damaged_manifest_is_named(corpus: Path, damage: str) -> None:
    path = manifest_path(corpus)
    key = damage.split(":")[0]
    path.write_text(re.sub(rf"{key}: \d+", damage, path.read_text()) if ":" in damage else damage)
    with pytest.raises(UserError, match=r"c.manifest.json: (not a corpus manifest|a manifest of format 7)"):
        megaqk("data", "inspect", corpus)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tokenizer", "train", "x.jsonl", "--output", "t.bin", "--vocab-size", "9"), "--output = t.bin: must end in"),
        (("data", "prepare", "x", "--tokenizer", "t", "--output", "o", "--workers", "0"), "--workers = 0"),
        (("data", "split", "x", "--part", "a=b", "--output", "o"), "--part = a=b: must be NAME=FRACTION"),
        (("data", "split", "x", "--part", "a=0.5", "--output", "o"), "--part = a=0.5: the fractions must add up to 1"),
        (("data", "inspect", "absent"), r"absent\.idx: No such file"),
    ],
)
def test_impossible_arguments_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        megaqk(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "prepare", "x", "--tokenizer", "t", "--output", "."), r"--output = \.: must end in a name"),
        (("data", "prepare", "x", "--tokenizer", "t", "--output", ".."), r"--output = \.\.: must end in a name"),
        (("data", "merge", "x", "--output", "."), r"--output = \.: must end in a name"),
        (("data", "merge", ".", "--output", "o"), r"PREFIX = \.: must end in a name"),
        (("data", "inspect", "."), r"PREFIX = \.: must end in a name"),
        (("data", "split", "x", "--part", "a=1", "--output", "/"), "--output = /: must end in a name"),
        (("data", "split", "x", "--part", "a/b=1", "--output", "o"), "--part = a/b=1: must be NAME=FRACTION"),
        (("data", "split", "x", "--part", "a=nan", "--output", "o"), "--part = a=nan: must be NAME=FRACTION"),
        (("data", "split", "x", "--part", "a=1", "--part", "a=1", "--output", "o"), "each name must be given once"),
        (("data", "inspect", "x", "--documents", "-1"), "--documents = -1: must be at least 0"),
        (("tokenizer", "inspect", "x", "--pieces", "-1"), "--pieces = -1: must be at least 0"),
        (
            ("tokenizer", "train", "x", "--output", "t.model", "--vocab-size", "0"),
            "--vocab-size = 0: must be at least 1",
        ),
        (
            ("tokenizer", "train", "x", "--output", "t.model", "--vocab-size", "9", "--sample-lines", "-3"),
            "--sample-lines = -3: must be at least 0",
        ),
        (
            ("tokenizer", "train", "x", "--output", "t.model", "--vocab-size", "9", "--max-bytes", "-3"),
            "--max-bytes = -3: must be at least 1",
        ),
    ],
)
def test_impossible_values_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        megaqk(*arguments)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "must not be empty"),
        ("<|endoftext|>", "is the end of every document"),
        ("<unk>", "must not be empty or a piece that every tokenizer has"),
        ("<0x41>", "must not be empty or a piece that every tokenizer has"),
    ],
)
def test_impossible_special_tokens_are_refused(tmp_path: Path, token: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    rest = ("--output", tmp_path / "t.model", "--vocab-size", 320, "--special-token", token)
    with pytest.raises(UserError, match=f"--special-token = .*: {message}"):
        megaqk("tokenizer", "train", tmp_path / "t.jsonl", *rest)


def test_a_corpus_is_not_shown_with_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "u.model"
    megaqk("tokenizer", "train", tmp_path / "t.jsonl", "--output", other, "--vocab-size", 300)
    with pytest.raises(UserError, match=r"--tokenizer = .*u.model: must be the t.model that made .*c"):
        megaqk("data", "inspect", corpus, "--tokenizer", other)
    manifest_path(corpus).unlink()
    with pytest.raises(UserError, match=r"c.bin: token \d+ at position \d+ is outside the vocabulary, \[0, 300\)"):
        megaqk("data", "inspect", corpus, "--tokenizer", other)


def test_documents_outside_the_vocabulary_are_not_decoded(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "odd", np.dtype("<i4"), [np.array([5, 320])])
    with pytest.raises(
        UserError, match=r"odd.bin: document 0 has tokens outside the vocabulary of .*t.model, \[0, 320"
    ):
        first_documents(IndexedCorpus(tmp_path / "odd"), load_tokenizer(tmp_path / "t.model"), 1)
