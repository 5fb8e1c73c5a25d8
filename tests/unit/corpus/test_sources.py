import gzip
import json
import shutil
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from megaqk.corpus.shards import iterate_texts
from megaqk.corpus.sources import find_sources
from megaqk.errors import UserError

TEXTS = [f"text {i}\nof two lines \u00e9" for i in range(50)]


def write(directory: Path, kind: str) -> Path:
    """Let other libraries write the texts."""
    table = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(50))})
    path = directory / f"t{kind}"
    if kind in (".jsonl", ".jsonl.gz"):
        table.to_json(str(path), compression="gzip" if kind.endswith("gz") else None)
    elif kind == ".json":
        path.write_text(json.dumps([{"text": text} for text in TEXTS]))
    elif kind == ".parquet":
        table.to_parquet(str(path))
    elif kind == ".csv":
        table.to_csv(str(path))
    elif kind == "saved":
        table.save_to_disk(str(path))
    elif kind == "saved_dict":
        datasets.DatasetDict({"train": table, "other": table.select(range(3))}).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", "saved", "saved_dict"])
def test_what_datasets_writes_is_read(tmp_path: Path, kind: str) -> None:
    sources = find_sources([str(write(tmp_path, kind))], key="input")
    assert list(iterate_texts(sources)) == TEXTS


def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    path = str(write(tmp_path, "saved_dict"))
    assert list(iterate_texts(find_sources([path], key="input", dataset_split="other"))) == TEXTS[:3]
    with pytest.raises(UserError, match="no split third, it has train, other"):
        list(iterate_texts(find_sources([path], key="input", dataset_split="third")))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("document", ["a\nb\n\nc\n"]),
        ("paragraph", ["a\nb", "c"]),
        ("line", ["a", "b", "c"]),
    ],
)
def test_units_of_plain_text(tmp_path: Path, unit: str, expected: list[str]) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n\nc\n")
    found = find_sources([str(tmp_path / "t.txt")], key="input", text_unit=unit)
    assert [text.rstrip("\n") for text in iterate_texts(found)] == [text.rstrip("\n") for text in expected]


def test_patterns_are_sorted_and_kept_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "sub/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    found = find_sources([str(tmp_path / "sub" / "*.jsonl"), str(tmp_path / "*.jsonl")], key="input")
    assert list(iterate_texts(found)) == ["sub/c", "a", "b"]
    assert len(find_sources([str(tmp_path / "**" / "*.jsonl")], key="input")) == 3


def write_arrow(path: Path, *, stream: bool) -> None:
    table = pyarrow.table({"text": TEXTS})
    opened = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=20)


@pytest.mark.parametrize(
    "name", ["t.txt", ".parquet", "saved", "stream.arrow", "file.arrow", ".csv", ".json", "t.txt.gz"]
)
def test_how_much_has_been_read_is_known_or_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("megaqk.corpus.sources.CHUNK_BYTES", 100)
    path = tmp_path / name
    if name.endswith(".arrow"):
        write_arrow(path, stream=name == "stream.arrow")
    elif name.startswith("t.txt"):
        raw = "\n\n".join(TEXTS).encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    else:
        path = write(tmp_path, name)
    (source,) = find_sources([str(path)], key="input", text_unit="paragraph")
    chunks = list(source.chunks())
    assert [text for chunk in chunks for text in chunk.texts or ()] == TEXTS
    shares = [chunk.consumed for chunk in chunks]
    if name in (".csv", ".json", "t.txt.gz"):
        assert set(shares[:-1]) == {None}
        assert shares[-1] in (None, 1)
    else:
        read = [(chunk.first - 1 + len(chunk.texts or ())) / len(TEXTS) for chunk in chunks]
        assert shares == pytest.approx(read, abs=0.03)
        assert shares[-1] == 1


def test_an_input_named_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "ab"):
        Path(f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    Path("link.jsonl").symlink_to("ab.jsonl")
    write(tmp_path, "saved")
    again = "again: its documents would be there twice"
    for patterns, message in (
        (["a.jsonl", "a*.jsonl"], f"input = a*.jsonl: names a.jsonl {again}"),
        (["a*.jsonl", str(tmp_path / "a.jsonl")], f"names {tmp_path}/a.jsonl again (first as a.jsonl): its"),
        (["*.jsonl"], "names link.jsonl again (first as ab.jsonl): its documents"),
        (["tsaved", "./tsaved/"], "names ./tsaved/ again (first as tsaved): its documents"),
        (["hf://x/y", "a.jsonl", "hf://x/y"], f"input = hf://x/y: names x/y {again}"),
    ):
        with pytest.raises(UserError) as caught:
            find_sources(patterns, key="input")
        assert message in str(caught.value)
    assert len(find_sources(["a.jsonl", "ab.jsonl", "tsaved", "hf://a.jsonl"], key="input")) == 4


def test_bounded_reading_takes_from_all_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaqk.corpus.sources.CHUNK_BYTES", 100)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"text": name * 80}) + "\n") * 50)
    found = find_sources([str(tmp_path / "*.jsonl")], key="input")
    texts = list(iterate_texts(found, max_bytes=1600))
    assert (texts.count("a" * 80), texts.count("b" * 80)) == (10, 10)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    write(tmp_path, ".parquet")
    for pattern, field, message in (
        ("absent.jsonl", "text", "input = .*absent.jsonl: must be a file, a pattern"),
        ("bad.parquet", "text", "bad.parquet: "),
        ("t.parquet", "body", "t.parquet: no field body, it has text, n"),
        ("t.parquet", "n", "t.parquet: field n holds int, not text"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            list(iterate_texts(find_sources([str(tmp_path / pattern)], key="input", text_field=field)))
        assert "\n" not in str(caught.value)


def test_a_dataset_saved_again_is_another(tmp_path: Path) -> None:
    path = write(tmp_path, "saved_dict")
    before = find_sources([str(path)], key="input")[0].state()
    assert find_sources([str(path)], key="input")[0].state() == before
    shutil.rmtree(path)
    table = datasets.Dataset.from_dict({"text": TEXTS[::-1], "n": list(range(50))})
    datasets.DatasetDict({"train": table, "other": table.select(range(3))}).save_to_disk(str(path))
    assert find_sources([str(path)], key="input")[0].state() != before


def bad_parquet(path: Path) -> None:
    """Write rows of which the second is no UTF-8, which Arrow does not check."""
    rows = pyarrow.array([b"good", b"a\xff", b"fine"])
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 3, rows.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), path)


@pytest.mark.parametrize(
    ("name", "contents", "where"),
    [
        ("t.txt", b"good\n\na\xff\n\nfine", "t.txt, row 2: invalid UTF-8"),
        ("t.json", b'{"text": "good"}\n{"text": "a\xff"}\n{"text": "fine"}', "t.json, line 2: invalid UTF-8"),
        ("t.json", b'{"text": "good"}\n{"text": "a\n{"text": "fine"}', "t.json, line 2: malformed JSON"),
        ("t.parquet", None, "t.parquet, row 2: invalid UTF-8"),
    ],
)
def test_bad_documents_are_named_or_skipped_in_every_format(
    tmp_path: Path, name: str, contents: bytes | None, where: str
) -> None:
    path = tmp_path / name
    if contents is None:
        bad_parquet(path)
    else:
        path.write_bytes(contents)
    found = find_sources([str(path)], key="input", text_unit="paragraph")
    with pytest.raises(UserError, match=where):
        list(iterate_texts(found))
    assert list(iterate_texts(found, skip_bad=True)) == ["good", "fine"]


@pytest.mark.parametrize("name", ["e.json", "e.csv", "e.txt", "e.jsonl", "e.parquet"])
def test_empty_files_have_no_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    if name == "e.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / name)
    assert list(iterate_texts(find_sources([str(tmp_path / name)], key="input"))) == []


def test_json_that_is_one_object_or_an_array_is_no_lines(tmp_path: Path) -> None:
    for name, contents in (("a", '{\n "text": "one"\n}\n'), ("b", '[{"text": "one"}]')):
        (tmp_path / f"{name}.json").write_text(contents)
        assert list(iterate_texts(find_sources([str(tmp_path / f"{name}.json")], key="input"))) == ["one"]


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".csv"])
def test_names_with_brackets_are_files(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind).rename(tmp_path / f"a[1]{kind}")
    assert list(iterate_texts(find_sources([str(path)], key="input"))) == TEXTS


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("unit", ["document", "paragraph", "line"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_plain_text_is_split_alike_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, unit: str, suffix: str
) -> None:
    text = "\u00e9 a\r\nb\n\n\nc\n\n\n\n\u2028d\re"
    raw = b"\xef\xbb\xbf" + text.encode()
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    monkeypatch.setattr("megaqk.corpus.lines._READ", block)
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    separator = {"document": None, "paragraph": "\n\n", "line": "\n"}[unit]
    expected = [part for part in (plain.split(separator) if separator else [plain]) if part]
    assert list(iterate_texts(find_sources([str(path)], key="input", text_unit=unit))) == expected
