import json
from pathlib import Path

import datasets
import pytest

from megaqk.data.lanes import iterate_texts
from megaqk.data.sources import find_sources
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


def test_bounded_reading_takes_from_all_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaqk.data.sources.CHUNK_BYTES", 100)
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
