"""The record beside each corpus of what it was made from and what it holds."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from megaqk.config.base import Section, refusal
from megaqk.data.checksum import Contents, Count
from megaqk.data.indexed import data_path, file_of, index_path
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, written_whole

FORMAT = 1


class Manifest(Section):
    """Contents of PREFIX.manifest.json; `skipped` counts the documents that were left out, by reason."""

    format: int = FORMAT
    documents: Count
    tokens: Count  # ends of documents included
    vocab_size: int = Field(ge=1, lt=2**31)  # tokens are of 32 bits at most
    eod_id: Count
    tokenizer: str  # the file's name
    tokenizer_sha256: str
    data: Contents  # PREFIX.bin
    index: Contents  # PREFIX.idx
    skipped: dict[str, Count]
    source: dict[str, Any]  # what the corpus was made from

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        if self.eod_id >= self.vocab_size:
            raise refusal("eod_id", self.eod_id, f"must be below vocab_size, {self.vocab_size}")
        return self

    def files(self, prefix: Path) -> tuple[tuple[Path, Contents], tuple[Path, Contents]]:
        """Return the two files of the corpus at `prefix`, and what they held."""
        return (data_path(prefix), self.data), (index_path(prefix), self.index)


def manifest_path(prefix: Path) -> Path:
    """Return PREFIX.manifest.json."""
    return file_of(prefix, ".manifest.json")


def write_manifest(prefix: Path, manifest: Manifest) -> None:
    """Write PREFIX.manifest.json, whole or not at all."""
    with written_whole(manifest_path(prefix)) as path:
        path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(prefix: Path) -> Manifest | None:
    """Read PREFIX.manifest.json; None if there is none."""
    path = manifest_path(prefix)
    if not path.exists():
        return None
    try:
        with os_errors_named(path):
            manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: not a corpus manifest of format {FORMAT}: {_problem(error)}") from error
    if manifest.format != FORMAT:
        raise UserError(f"{path}: a manifest of format {manifest.format}: must be {FORMAT}")
    return manifest


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    # A value of another type may be as long as it likes.
    value = f" = {first['input']}" if type(first["input"]) is int else ""
    return f"{key}{value}: {message}" if key else message
