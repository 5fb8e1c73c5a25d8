"""Files that are either whole or absent."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from megaqk.errors import UserError


@contextlib.contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses (full disk, no permission) into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def sync_directory(path: Path) -> None:
    """Make renames inside directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the contents of file `path` durable."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it is synced and renamed to `path`, else removed.

    Raises:
        UserError: The operating system refused to write.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors_named(path):
        try:
            yield beside
            sync_file(beside)
            beside.replace(path)
            sync_directory(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks of bounded size."""
    digest = hashlib.sha256()
    with os_errors_named(path), path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
