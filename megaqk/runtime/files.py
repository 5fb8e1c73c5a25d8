"""Files that are either whole or absent."""

import contextlib
import fcntl
import hashlib
import os
import sys
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


@contextlib.contextmanager
def exclusive_lock(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold an advisory lock on file `path`, waiting for other processes; the kernel frees it if we die.

    Args:
        path: The file, made if need be.
        waiting: A line for stderr where another process has the lock.
    """
    with os_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with os_errors_named(path):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    sys.stderr.write(f"{waiting}\n")
                    sys.stderr.flush()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks of bounded size."""
    digest = hashlib.sha256()
    with os_errors_named(path), path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class _Held:
    def __init__(self, stream):  # type: ignore
        self.stream = stream

    def release(self):  # type: ignore
        self.stream.close()


def try_lock(path: Path):  # type: ignore
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return _Held(stream)
