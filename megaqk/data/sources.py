"""Documents from the formats that `datasets` reads."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megaqk.errors import UserError

_COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text", ".text": "text"}
_BATCH = 1000


def find_files(patterns: Iterable[str], *, key: str) -> list[Path]:
    """Return the files of paths and glob patterns, sorted within each pattern.

    Raises:
        UserError: A pattern matches no file; `key` names it.
    """
    found: list[Path] = []
    for pattern in patterns:
        names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        matches = sorted(path for path in map(Path, names) if path.is_file())
        if not matches:
            raise UserError(f"{key} = {pattern}: no such file")
        found += matches
    return found


def _builder(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSIONS]
    builder = _BUILDERS.get(suffixes[-1]) if suffixes else None
    if builder is None:
        raise UserError(f"{path}: must end in {', '.join(_BUILDERS)} (and {', '.join(_COMPRESSIONS)} if compressed)")
    return builder


def iterate_texts(files: Sequence[Path], *, text_field: str = "text") -> Iterator[str]:
    """Yield the non-empty documents of files in order: one a json line, a parquet row or a text file.

    Raises:
        UserError: A file is of no known kind, malformed or has no text field.
    """
    import datasets  # takes seconds to import, and a prepared corpus needs it no more

    for path in files:
        options = {"sample_by": "document"} if _builder(path) == "text" else {}
        try:
            stream = datasets.load_dataset(
                _builder(path), data_files=str(path), split="train", streaming=True, **options
            )
            for batch in stream.iter(batch_size=_BATCH):
                if text_field not in batch:
                    raise UserError(f"{path}: no field {text_field}, it has {', '.join(batch)}")
                yield from (text for text in batch[text_field] if text)
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
