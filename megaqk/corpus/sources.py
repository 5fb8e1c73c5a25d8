"""What can be prepared: files, saved datasets and datasets of the hub, as streams of chunks of documents.

Line-delimited JSON and plain text are read by `lines`, so that a malformed line can be named or skipped and an
interrupted preparation can pass over what it has done without parsing it; all else by the `datasets` library.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaqk.corpus.lines import COMPRESSIONS, Chunk, TextUnit, holds_json_lines, is_blank, line_chunks, text_documents
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

# Small enough that a rank can hold one chunk of each of its inputs and that all cores end together, large enough to
# hide the cost of handing it on. The order of documents from several inputs depends on it.
CHUNK_BYTES = 1 << 20
_LINE_FORMATS = (".jsonl", ".ndjson")
_BUILDERS = {".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".txt": "text", ".text": "text"}
_ROWS = 1000
_SEPARATOR_BYTES: dict[TextUnit, int] = {"document": 0, "paragraph": 2, "line": 1}


@dataclass(frozen=True)
class Source:
    """One input: a file, the directory of a saved dataset, or a name on the hub."""

    name: str
    builder: str  # "lines", "text", "saved", "hub" or the `datasets` builder of a file
    text_field: str = "text"
    text_unit: TextUnit = "document"  # what one document of a plain text file is
    dataset_split: str = "train"  # of a saved or hub dataset
    configuration: str | None = None  # of a hub dataset

    def state(self) -> dict[str, Any]:
        """Describe the input so that a change of it shows, without reading it."""
        path = Path(self.name)
        described: dict[str, Any] = {"name": self.name, "text_field": self.text_field}
        if path.is_file():
            described |= {"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}
        if self.builder == "text":
            described["text_unit"] = self.text_unit
        if self.builder in ("saved", "hub"):
            described |= {"split": self.dataset_split, "configuration": self.configuration}
        if self.builder == "saved":
            described["files"] = _listing_of(path)
        return described

    def chunks(self) -> Iterator[Chunk]:
        """Yield the documents in order, in chunks whose ends depend on the contents alone."""
        if self.builder == "lines":
            yield from line_chunks(Path(self.name), CHUNK_BYTES)
            return
        first, held, size = 1, list[str | None](), 0
        for text, consumed in self._plain_texts() if self.builder == "text" else self._dataset_texts():
            held.append(text)
            size += len(text or "")
            if size >= CHUNK_BYTES:
                yield Chunk(self.name, first, None, tuple(held), consumed)
                first, held, size = first + len(held), [], 0
        if held:
            yield Chunk(self.name, first, None, tuple(held), 1.0)

    def _plain_texts(self) -> Iterator[tuple[str, float | None]]:
        path, done = Path(self.name), 0
        # The text of a compressed file has no size that is known beforehand.
        total = None if path.suffix in COMPRESSIONS else path.stat().st_size
        for text in text_documents(path, self.text_unit):
            done += len(text.encode("utf-8", "surrogateescape")) + _SEPARATOR_BYTES[self.text_unit]
            yield text, _share(done, total)

    def _dataset_texts(self) -> Iterator[tuple[str | None, float | None]]:
        try:
            # The library's readers fail, each in its way, on files that hold nothing.
            total, done = self._file_rows(), 0
            if total == 0 or (self.builder in ("json", "csv") and is_blank(Path(self.name))):
                return
            dataset = self._dataset()
            if self.builder == "saved":
                total, dataset = len(dataset), dataset.to_iterable_dataset()
            for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
                if self.text_field not in table.column_names:
                    raise UserError(f"{self.name}: no field {self.text_field}, it has {', '.join(table.column_names)}")
                for text in _values(table.column(self.text_field)):
                    if text is not None and not isinstance(text, str):
                        raise UserError(f"{self.name}: field {self.text_field} holds {type(text).__name__}, not text")
                    done += 1
                    yield text, _share(done, total)
        except UserError:
            raise
        except Exception as error:
            # Whatever a format's reader raises, the file (or the missing network) is what the user can mend.
            cause = str(error.__cause__ or error) or type(error).__name__
            raise UserError(f"{self.name}: {cause.splitlines()[0]}") from error

    def _dataset(self) -> Any:
        import datasets  # takes seconds to import, and a prepared corpus needs it no more

        if self.builder == "hub":
            return datasets.load_dataset(self.name, self.configuration, split=self.dataset_split, streaming=True)
        if self.builder != "saved":
            return datasets.load_dataset(self.builder, data_files=glob.escape(self.name), split="train", streaming=True)
        saved = datasets.load_from_disk(self.name)
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if self.dataset_split not in saved:
            raise UserError(f"{self.name}: no split {self.dataset_split}, it has {', '.join(saved)}")
        return saved[self.dataset_split]

    def _file_rows(self) -> int | None:
        # Where the file says so by itself; of a mapped file only the headers of its batches are read.
        if self.builder not in ("parquet", "arrow"):
            return None
        import pyarrow.parquet

        if self.builder == "parquet":
            return int(pyarrow.parquet.read_metadata(self.name).num_rows)
        with pyarrow.memory_map(self.name) as mapped:
            try:
                batches = list(pyarrow.ipc.open_stream(mapped))
            except pyarrow.ArrowInvalid:  # the other of the two formats
                mapped.seek(0)
                opened = pyarrow.ipc.open_file(mapped)
                batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
            return sum(int(batch.num_rows) for batch in batches)


def _share(done: int, total: int | None) -> float | None:
    return None if total is None else min(done / max(total, 1), 1.0)


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        # Surrogates stand for what is no UTF-8, as in plain text: it is a matter of single documents.
        rows = column.cast("large_binary").to_pylist()
        return [None if row is None else row.decode("utf-8", "surrogateescape") for row in rows]


def _listing_of(directory: Path) -> str:
    # A dataset saved again has the same name; its fingerprint is in state.json, which is small.
    listing = []
    for path in sorted(path for path in directory.rglob("*") if path.suffix in (".arrow", ".json")):
        with os_errors_named(path):
            contents = path.read_text("utf-8", "replace") if path.name == "state.json" else ""
            status = path.stat()
            listing.append((str(path.relative_to(directory)), status.st_size, status.st_mtime_ns, contents))
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def find_sources(patterns: Iterable[str], *, key: str, **options: Any) -> list[Source]:
    """Resolve paths, glob patterns, directories of saved datasets and `hf://` names; files of a pattern are sorted.

    Args:
        patterns: What the user gave.
        key: What the user gave it as, for messages.
        options: The other attributes of each `Source`.
    """
    found: list[Source] = []
    seen: dict[str, str] = {}
    for pattern in patterns:
        for name, builder in _matches(pattern, key):
            same = name if builder == "hub" else str(Path(name).resolve())
            if same in seen:
                already = "" if seen[same] == name else f" (first as {seen[same]})"
                raise UserError(f"{key} = {pattern}: names {name} again{already}: its documents would be there twice")
            seen[same] = name
            found.append(Source(name, builder, **options))
    return found


def _matches(pattern: str, key: str) -> list[tuple[str, str]]:
    # Names and builders.
    if pattern.startswith("hf://"):
        return [(pattern.removeprefix("hf://"), "hub")]
    if any((Path(pattern) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return [(pattern, "saved")]
    # A name with brackets is a file before it is a pattern. Path.glob refuses absolute patterns.
    names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    paths = [path for path in map(Path, names) if path.is_file()]
    if not paths:
        raise UserError(
            f"{key} = {pattern}: must be a file, a pattern that matches files, a saved dataset or hf://NAME"
        )
    return [(str(path), _file_builder(path)) for path in paths]


def _file_builder(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in _LINE_FORMATS and suffix not in _BUILDERS:
        known = ", ".join((*_LINE_FORMATS, *_BUILDERS))
        raise UserError(f"{path}: must end in {known} (and {', '.join(COMPRESSIONS)} where compressed)")
    lines = suffix in _LINE_FORMATS or (suffix == ".json" and holds_json_lines(path))
    return "lines" if lines else _BUILDERS[suffix]
