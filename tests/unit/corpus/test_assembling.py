import json
from pathlib import Path

import numpy as np
import pytest

from megaqk.corpus import assembling
from megaqk.corpus.inspection import describe_corpus
from megaqk.data.checksum import measured
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.manifest import Manifest, manifest_path, read_manifest, write_manifest
from megaqk.errors import UserError
from tests.corpora import write_corpus
from tests.unit.corpus.test_cli import megaqk

EOD = 0
PARTS = ("--part", "a=0.5", "--part", "b=0.25", "--part", "c=0.25")


def corpus(prefix: Path, documents: int = 8, *, described: bool = True, eod_id: int = EOD, **skipped: int) -> Path:
    tokens = [np.array([*range(1, number + 2), eod_id]) for number in range(documents)]
    write_corpus(prefix, np.dtype("<u2"), tokens)
    if described:
        manifest = Manifest(
            documents=documents,
            tokens=sum(map(len, tokens)),
            vocab_size=300,
            eod_id=eod_id,
            tokenizer="t.model",
            tokenizer_sha256="0" * 64,
            data=measured(prefix.with_suffix(".bin")),
            index=measured(prefix.with_suffix(".idx")),
            skipped=skipped,
            source={},
        )
        write_manifest(prefix, manifest)
    return prefix


def damage(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[0] ^= 1
    path.write_bytes(contents)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_merging_adds_up_what_was_left_out(tmp_path: Path) -> None:
    first, second = corpus(tmp_path / "a", empty=3, odd=1), corpus(tmp_path / "b", 5, empty=4)
    megaqk("data", "merge", first, second, "--output", tmp_path / "both")
    manifest = read_manifest(tmp_path / "both")
    assert manifest is not None
    assert manifest.skipped == {"empty": 7, "odd": 1}
    assert manifest.documents == 13


def test_parts_say_what_the_whole_left_out(tmp_path: Path) -> None:
    megaqk("data", "split", corpus(tmp_path / "w", empty=3), *PARTS, "--output", tmp_path / "w")
    said = describe_corpus(IndexedCorpus(tmp_path / "w-a"))[-1]
    assert said == "left out         3 empty (of the corpus that this is a part of)"


@pytest.mark.parametrize("command", ["merge", "split"])
def test_damage_is_not_given_new_checksums(tmp_path: Path, command: str) -> None:
    good, bad = corpus(tmp_path / "good"), corpus(tmp_path / "bad")
    damage(tmp_path / "bad.bin")
    (tmp_path / "out").mkdir()
    arguments = ("data", command, *([good, bad] if command == "merge" else [bad, *PARTS]))
    with pytest.raises(UserError, match=r"bad.bin: its checksum is not the manifest's: it was changed or damaged"):
        megaqk(*arguments, "--output", tmp_path / "out" / "o")
    assert not files(tmp_path / "out")


def test_ends_of_documents_are_not_mixed(tmp_path: Path) -> None:
    first, second = corpus(tmp_path / "a"), corpus(tmp_path / "b", eod_id=9)
    with pytest.raises(UserError, match=r"b.idx: its documents end with another token than in the other corpora"):
        megaqk("data", "merge", first, second, "--output", tmp_path / "o")


def test_a_split_looks_at_every_part_before_it_writes_one(tmp_path: Path) -> None:
    whole, there = corpus(tmp_path / "w"), corpus(tmp_path / "out" / "o-c", 3)
    before = files(there.parent)
    with pytest.raises(UserError, match=r"o-c.bin: exists: choose another output or overwrite it"):
        megaqk("data", "split", whole, *PARTS, "--output", tmp_path / "out" / "o")
    assert files(there.parent) == before


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("killed_at", ["publish", "write_index"])
def test_a_killed_split_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: bool, killed_at: str
) -> None:
    whole = corpus(tmp_path / "in" / "w", described=described)
    megaqk("data", "split", whole, *PARTS, "--output", tmp_path / "reference" / "o")
    real, calls = getattr(assembling, killed_at), []

    def dies(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(assembling, killed_at, dies)
    command = ("data", "split", whole, *PARTS, "--output", tmp_path / "out" / "o")
    with pytest.raises(KeyboardInterrupt):
        megaqk(*command)
    written = (tmp_path / "out" / "o-a.bin").stat().st_mtime_ns
    megaqk(*command)
    assert files(tmp_path / "out") == files(tmp_path / "reference")
    assert (tmp_path / "out" / "o-a.bin").stat().st_mtime_ns == written
    # All of it is there; other parts of the same names are not.
    megaqk(*command)
    assert len(calls) == 4
    with pytest.raises(UserError, match=r"o-a.bin: exists"):
        megaqk("data", "split", whole, "--part", "a=0.25", "--part", "b=0.75", "--output", tmp_path / "out" / "o")


def test_another_corpus_of_the_same_shape_is_not_taken_for_a_part(tmp_path: Path) -> None:
    for described in (True, False):
        name = f"w{described}"
        whole = corpus(tmp_path / name, described=described)
        megaqk("data", "split", whole, *PARTS, "--output", whole)
        damage(tmp_path / f"{name}.bin")
        if described:
            manifest = json.loads(manifest_path(whole).read_text())
            manifest["data"]["checksum"] = measured(tmp_path / f"{name}.bin").checksum
            manifest_path(whole).write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"-a.bin: exists"):
            megaqk("data", "split", whole, *PARTS, "--output", whole)


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "w")
    before = files(tmp_path)
    for small in ("0", "0.01"):
        parts = ("--part", f"a={1 - float(small)}", "--part", f"b={small}")
        with pytest.raises(UserError, match=rf"w-b: would be empty: {small} of 8 documents is none"):
            megaqk("data", "split", whole, *parts, "--output", whole)
    assert files(tmp_path) == before


def test_a_part_may_not_replace_the_whole(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "w-a")
    with pytest.raises(UserError, match=r"w-a: is what is to be split: choose another output"):
        megaqk("data", "split", whole, *PARTS, "--output", tmp_path / "w", "--overwrite")
