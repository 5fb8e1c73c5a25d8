"""What can be prepared: files, saved datasets and datasets of the hub, as streams of chunks of documents.

Line-delimited JSON is read by `lines`, so that a malformed line can be named or skipped and an interrupted preparation
can pass over what it has done without parsing it; plain text by `plain_text`. Everything else goes through the
`datasets` library.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaqk.corpus.lines import COMPRESSIONS, Chunk, line_chunks, read_blocks
from megaqk.corpus.plain_text import TextUnit, text_documents
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
    """One input: a file, the directory of a saved dataset, or a name on the hub.

    Attributes:
        name: The path or the name.
        builder: "lines", "text", "saved", "hub" or the `datasets` builder of a file.
        text_field: The field that holds the text.
        text_unit: What one document of a plain text file is.
        dataset_split: The split of a saved or hub dataset.
        configuration: The configuration of a hub dataset.
    """

    name: str
    builder: str
    text_field: str = "text"
    text_unit: TextUnit = "document"
    dataset_split: str = "train"
    configuration: str | None = None

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
        """Yield the documents in order, in chunks whose ends depend on the contents alone.

        Raises:
            UserError: The input cannot be read or has no such field.
        """
        if self.builder == "lines":
            return line_chunks(Path(self.name), CHUNK_BYTES)
        return self._chunked(self._plain_texts() if self.builder == "text" else self._dataset_texts())

    def _dataset(self) -> Any:
        import datasets  # takes seconds to import, and a prepared corpus needs it no more

        if self.builder == "saved":
            saved = datasets.load_from_disk(self.name)
            if isinstance(saved, datasets.DatasetDict):
                if self.dataset_split not in saved:
                    raise UserError(f"{self.name}: no split {self.dataset_split}, it has {', '.join(saved)}")
                saved = saved[self.dataset_split]
            return saved
        if self.builder == "hub":
            return datasets.load_dataset(self.name, self.configuration, split=self.dataset_split, streaming=True)
        return datasets.load_dataset(self.builder, data_files=glob.escape(self.name), split="train", streaming=True)

    def _file_rows(self) -> int | None:
        # Where the file says so by itself.
        if self.builder == "parquet":
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(self.name).num_rows)
        return _arrow_rows(self.name) if self.builder == "arrow" else None

    def _chunked(self, texts: Iterable[tuple[str | None, float | None]]) -> Iterator[Chunk]:
        first, held, size = 1, list[str | None](), 0
        for text, consumed in texts:
            held.append(text)
            size += len(text or "")
            if size >= CHUNK_BYTES:
                yield Chunk(self.name, first, None, tuple(held), consumed)
                first, held, size = first + len(held), [], 0
        if held:
            yield Chunk(self.name, first, None, tuple(held), 1.0)

    def _plain_texts(self) -> Iterator[tuple[str, float | None]]:
        path = Path(self.name)
        # The text of a compressed file has no size that is known beforehand.
        total = None if path.suffix in COMPRESSIONS else _size_and_time(path)[0]
        done = 0
        for text in text_documents(path, self.text_unit):
            done += len(text.encode("utf-8", "surrogateescape")) + _SEPARATOR_BYTES[self.text_unit]
            yield text, _share(done, total)

    def _dataset_texts(self) -> Iterator[tuple[str | None, float | None]]:
        try:
            total, done = self._file_rows(), 0
            if total == 0 or self._is_blank():
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

    def _is_blank(self) -> bool:
        # The library's readers fail, each in its way, on files that hold nothing.
        return self.builder in ("json", "csv") and not any(block.strip() for block in read_blocks(Path(self.name)))


def _share(done: int, total: int | None) -> float | None:
    return None if total is None else min(done / max(total, 1), 1.0)


def _arrow_rows(name: str) -> int:
    import pyarrow

    # Of a mapped file only the headers of its batches are read.
    with pyarrow.memory_map(name) as mapped:
        try:
            return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(mapped))
        except pyarrow.ArrowInvalid:  # the other of the two formats
            mapped.seek(0)
            opened = pyarrow.ipc.open_file(mapped)
            return sum(opened.get_batch(number).num_rows for number in range(opened.num_record_batches))


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        # Surrogates stand for what is no UTF-8, as in `plain_text`: it is a matter of single documents.
        rows = column.cast("large_binary").to_pylist()
        return [None if row is None else row.decode("utf-8", "surrogateescape") for row in rows]


def _listing_of(directory: Path) -> str:
    # A dataset saved again has the same name; its fingerprint is in state.json, which is small.
    listing = []
    for path in sorted(path for path in directory.rglob("*") if path.suffix in (".arrow", ".json")):
        with os_errors_named(path):
            contents = path.read_text("utf-8", "replace") if path.name == "state.json" else ""
            listing.append((str(path.relative_to(directory)), *_size_and_time(path), contents))
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _holds_json_lines(path: Path) -> bool:
    # An array starts otherwise, and the first line of an object that is spread over lines ends in the middle of it.
    for block in read_blocks(path):
        if start := block.removeprefix(b"\xef\xbb\xbf").strip():
            return start[:1] == b"{" and start.split(b"\n")[0].strip()[-1:] not in (b"{", b"[", b",", b":")
    return False


def _file_builder(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _LINE_FORMATS:
        return "lines"
    if suffix not in _BUILDERS:
        known = ", ".join((*_LINE_FORMATS, *_BUILDERS))
        raise UserError(f"{path}: must end in {known} (and {', '.join(COMPRESSIONS)} where compressed)")
    if suffix == ".json" and _holds_json_lines(path):
        return "lines"
    return _BUILDERS[suffix]


def find_sources(
    patterns: Iterable[str],
    *,
    key: str,
    text_field: str = "text",
    text_unit: TextUnit = "document",
    dataset_split: str = "train",
    configuration: str | None = None,
) -> list[Source]:
    """Resolve paths, glob patterns, directories of saved datasets and `hf://` names; files of a pattern are sorted.

    Args:
        patterns: What the user gave.
        key: What the user gave it as, for messages.
        text_field: See `Source`.
        text_unit: See `Source`.
        dataset_split: See `Source`.
        configuration: See `Source`.

    Raises:
        UserError: A pattern matches nothing, a file of unknown kind, or what was named before.
    """
    found: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for pattern in patterns:
        for name, builder in _matches(pattern, key):
            same = name if builder == "hub" else str(Path(name).resolve())
            if same in seen:
                already = "" if seen[same] == name else f" (first as {seen[same]})"
                raise UserError(f"{key} = {pattern}: names {name} again{already}: its documents would be there twice")
            seen[same] = name
            found.append((name, builder))
    return [Source(name, builder, text_field, text_unit, dataset_split, configuration) for name, builder in found]


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
