"""The record beside each corpus of what it was made from and what it holds."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megaqk.data.files import os_errors_named, sha256_of, written_whole
from megaqk.data.indexed import data_path, index_path
from megaqk.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Contents of PREFIX.manifest.json.

    Attributes:
        source: What the corpus was made from.
        tokenizer_sha256: Checksum of the tokenizer file.
        vocab_size: Ids of that tokenizer.
        eod_id: The id at the end of every document.
        documents: Number of documents.
        tokens: Number of tokens, ends of documents included.
        files: Name beside the manifest -> {"bytes": size, "sha256": checksum}.
        format: Version of this record.
    """

    source: dict[str, Any]
    tokenizer_sha256: str
    vocab_size: int
    eod_id: int
    documents: int
    tokens: int
    files: dict[str, dict[str, Any]]
    format: int = FORMAT


def manifest_path(prefix: Path) -> Path:
    """Return PREFIX.manifest.json."""
    return prefix.with_name(prefix.name + ".manifest.json")


def files_of(prefix: Path) -> dict[str, dict[str, Any]]:
    """Measure PREFIX.bin and PREFIX.idx for a manifest."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in (data_path(prefix), index_path(prefix))
    }


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
