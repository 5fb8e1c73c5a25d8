"""What can be prepared: files, saved datasets and datasets of the hub, as streams of chunks of documents.

Line-delimited JSON is read by `lines`, so that a malformed line can be named or skipped and an interrupted preparation
can pass over what it has done without parsing it. Everything else goes through the `datasets` library.
"""

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megaqk.data.lines import COMPRESSIONS, Chunk, line_chunks
from megaqk.errors import UserError

TextUnit = Literal["document", "paragraph", "line"]
# Small enough that a rank can hold one chunk of each of its inputs and that all cores end together, large enough to
# hide the cost of handing it on. The order of documents from several inputs depends on it.
CHUNK_BYTES = 1 << 20
_LINE_FORMATS = (".jsonl", ".ndjson")
_BUILDERS = {".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".txt": "text", ".text": "text"}
_ROWS = 1000


@dataclass(frozen=True)
class Source:
    """One input: a file, the directory of a saved dataset, or a name on the hub.

    Attributes:
        name: The path or the name.
        builder: "lines", "saved", "hub" or the `datasets` builder of a file.
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
        return described

    def chunks(self) -> Iterator[Chunk]:
        """Yield the documents in order, in chunks whose ends depend on the contents alone.

        Raises:
            UserError: The input cannot be read or has no such field.
        """
        return line_chunks(Path(self.name), CHUNK_BYTES) if self.builder == "lines" else self._dataset_chunks()

    def _dataset(self) -> Any:
        import datasets  # takes seconds to import, and a prepared corpus needs it no more

        if self.builder == "saved":
            saved = datasets.load_from_disk(self.name)
            if isinstance(saved, datasets.DatasetDict):
                if self.dataset_split not in saved:
                    raise UserError(f"{self.name}: no split {self.dataset_split}, it has {', '.join(saved)}")
                saved = saved[self.dataset_split]
            return saved.to_iterable_dataset()
        if self.builder == "hub":
            return datasets.load_dataset(self.name, self.configuration, split=self.dataset_split, streaming=True)
        options = {"sample_by": self.text_unit} if self.builder == "text" else {}
        return datasets.load_dataset(self.builder, data_files=self.name, split="train", streaming=True, **options)

    def _dataset_chunks(self) -> Iterator[Chunk]:
        first, held, size = 1, list[str | None](), 0
        try:
            for table in self._dataset().with_format("arrow").iter(batch_size=_ROWS):
                if self.text_field not in table.column_names:
                    raise UserError(f"{self.name}: no field {self.text_field}, it has {', '.join(table.column_names)}")
                for text in table.column(self.text_field).to_pylist():
                    if text is not None and not isinstance(text, str):
                        raise UserError(f"{self.name}: field {self.text_field} holds {type(text).__name__}, not text")
                    held.append(text)
                    size += len(text or "")
                    if size >= CHUNK_BYTES:
                        yield Chunk(self.name, first, None, tuple(held), 0.0)
                        first, held, size = first + len(held), [], 0
        except UserError:
            raise
        except Exception as error:
            # Whatever a format's reader raises, the file (or the missing network) is what the user can mend.
            cause = str(error.__cause__ or error) or type(error).__name__
            raise UserError(f"{self.name}: {cause.splitlines()[0]}") from error
        if held:
            yield Chunk(self.name, first, None, tuple(held), 1.0)


def _file_builder(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _LINE_FORMATS:
        return "lines"
    if suffix not in _BUILDERS:
        known = ", ".join((*_LINE_FORMATS, *_BUILDERS))
        raise UserError(f"{path}: must end in {known} (and {', '.join(COMPRESSIONS)} where compressed)")
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
        UserError: A pattern matches nothing, or a file of unknown kind.
    """
    found: list[tuple[str, str]] = []
    for pattern in patterns:
        if pattern.startswith("hf://"):
            found.append((pattern.removeprefix("hf://"), "hub"))
            continue
        if any((Path(pattern) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            found.append((pattern, "saved"))
            continue
        names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        paths = [path for path in map(Path, names) if path.is_file()]
        if not paths:
            raise UserError(
                f"{key} = {pattern}: must be a file, a pattern that matches files, a saved dataset or hf://NAME"
            )
        found += [(str(path), _file_builder(path)) for path in paths]
    return [Source(name, builder, text_field, text_unit, dataset_split, configuration) for name, builder in found]
