"""The record beside each corpus of what it was made from and what it holds."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megaqk.data.checksum import block_checksum
from megaqk.data.comm import Comm
from megaqk.data.files import os_errors_named, written_whole
from megaqk.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Contents of PREFIX.manifest.json.

    Attributes:
        source: What the corpus was made from.
        tokenizer: Name of the tokenizer file.
        tokenizer_sha256: Checksum of the tokenizer file.
        vocab_size: Ids of that tokenizer.
        eod_id: The id at the end of every document.
        documents: Number of documents.
        tokens: Number of tokens, ends of documents included.
        skipped: Documents left out, by reason.
        files: Name beside the manifest -> {"bytes": size, "checksum": see `checksum.block_checksum`}.
        format: Version of this record.
    """

    source: dict[str, Any]
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    eod_id: int
    documents: int
    tokens: int
    skipped: dict[str, int]
    files: dict[str, dict[str, Any]]
    format: int = FORMAT


def manifest_path(prefix: Path) -> Path:
    """Return PREFIX.manifest.json."""
    return prefix.with_name(prefix.name + ".manifest.json")


def measured(path: Path, *, comm: Comm | None = None, threads: int = 1) -> dict[str, Any]:
    """Return the entry of `files` for a file; the ranks of `comm` divide the work and all get the answer."""
    return {"bytes": path.stat().st_size, "checksum": block_checksum(path, comm=comm, threads=threads)}


def write_manifest(prefix: Path, manifest: Manifest) -> None:
    """Write PREFIX.manifest.json, whole or not at all."""
    with written_whole(manifest_path(prefix)) as path:
        path.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(prefix: Path) -> Manifest | None:
    """Read PREFIX.manifest.json; None if there is none.

    Raises:
        UserError: It is unreadable or not a manifest of this format.
    """
    path = manifest_path(prefix)
    if not path.exists():
        return None
    with os_errors_named(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return Manifest(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a corpus manifest of format {FORMAT}") from error


def sizes_match(prefix: Path, manifest: Manifest) -> bool:
    """Tell whether the files beside the manifest have the sizes it names; cheap, unlike their checksums."""
    paths = [prefix.parent / name for name in manifest.files]
    return all(path.is_file() and path.stat().st_size == manifest.files[path.name]["bytes"] for path in paths)


def is_described(prefix: Path) -> bool:
    """Tell whether a corpus has a manifest that its files fit, and so an index that was right when it was written."""
    try:
        manifest = read_manifest(prefix)
    except UserError:
        return False
    return manifest is not None and sizes_match(prefix, manifest)
