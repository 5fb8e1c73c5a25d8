"""The record beside each corpus of what it was made from and what it holds."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megaqk.config.base import Section
from megaqk.data.checksum import block_checksum
from megaqk.data.comm import Comm
from megaqk.data.files import os_errors_named, written_whole
from megaqk.data.indexed import data_path, index_path
from megaqk.errors import UserError

FORMAT = 1


class Contents(Section):
    """What a file held when it was made.

    Attributes:
        size: Bytes.
        checksum: See `checksum.block_checksum`.
    """

    size: int
    checksum: str


class Manifest(Section):
    """Contents of PREFIX.manifest.json.

    Attributes:
        format: Version of this record.
        documents: Number of documents.
        tokens: Number of tokens, ends of documents included.
        vocab_size: Ids of the tokenizer.
        eod_id: The id at the end of every document.
        tokenizer: Name of the tokenizer file.
        tokenizer_sha256: Its checksum.
        data: PREFIX.bin.
        index: PREFIX.idx.
        skipped: Documents left out, by reason.
        source: What the corpus was made from.
    """

    format: int = FORMAT
    documents: int
    tokens: int
    vocab_size: int
    eod_id: int
    tokenizer: str
    tokenizer_sha256: str
    data: Contents
    index: Contents
    skipped: dict[str, int]
    source: dict[str, Any]


def manifest_path(prefix: Path) -> Path:
    """Return PREFIX.manifest.json."""
    return prefix.with_name(prefix.name + ".manifest.json")


def measured(path: Path, *, comm: Comm | None = None, threads: int = 1) -> Contents:
    """Measure a file; the ranks of `comm` divide the work and all get the answer."""
    return Contents(size=path.stat().st_size, checksum=block_checksum(path, comm=comm, threads=threads))


def write_manifest(prefix: Path, manifest: Manifest) -> None:
    """Write PREFIX.manifest.json, whole or not at all."""
    with written_whole(manifest_path(prefix)) as path:
        path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(prefix: Path) -> Manifest | None:
    """Read PREFIX.manifest.json; None if there is none.

    Raises:
        UserError: It is unreadable or not a manifest of this format.
    """
    path = manifest_path(prefix)
    if not path.exists():
        return None
    with os_errors_named(path):
        text = path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: not a corpus manifest of format {FORMAT}") from error
    if manifest.format != FORMAT:
        raise UserError(f"{path}: a manifest of format {manifest.format}: must be {FORMAT}")
    return manifest


def sizes_match(prefix: Path, manifest: Manifest) -> bool:
    """Tell whether both files have the sizes the manifest names; cheap, unlike their checksums."""
    return all(
        path.is_file() and path.stat().st_size == contents.size
        for path, contents in ((data_path(prefix), manifest.data), (index_path(prefix), manifest.index))
    )


def check_sizes(prefix: Path, manifest: Manifest) -> None:
    """Raise a `UserError` that names the file whose size is not the manifest's, or that is missing."""
    for path, contents in ((data_path(prefix), manifest.data), (index_path(prefix), manifest.index)):
        with os_errors_named(path):
            size = path.stat().st_size
        if size != contents.size:
            raise UserError(
                f"{path}: {size} bytes, {manifest_path(prefix).name} says {contents.size}: it was changed or damaged "
                "after it was made; make it again, or remove the manifest of a corpus that has been replaced"
            )


def is_described(prefix: Path) -> bool:
    """Tell whether a corpus has a manifest that its files fit, and so an index that was right when it was written."""
    try:
        manifest = read_manifest(prefix)
    except UserError:
        return False
    return manifest is not None and sizes_match(prefix, manifest)
