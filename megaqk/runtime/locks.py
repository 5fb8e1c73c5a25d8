"""Locks between processes, which the kernel frees when their holder dies."""

import contextlib
import errno
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named


def try_lock(path: Path) -> FileLock | None:
    """Take the lock on file `path`, made if need be, until its `release()` or the end of the process.

    Returns:
        The lock, or None where another holds it.

    Raises:
        UserError: The file cannot be written, or its file system has no locks.
    """
    lock = FileLock(path)
    return lock if _acquire(lock, path, blocking=False) else None


@contextlib.contextmanager
def exclusive_lock(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock on file `path`, waiting for other processes.

    Args:
        path: The file, made if need be.
        waiting: A line for stderr where another process has the lock.

    Raises:
        UserError: As `try_lock`.
    """
    lock = FileLock(path)
    if not _acquire(lock, path, blocking=False):
        if waiting is not None:
            sys.stderr.write(f"{waiting}\n")
            sys.stderr.flush()
        _acquire(lock, path, blocking=True)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, *, blocking: bool) -> bool:
    missing = UserError(f"{path}: its file system has no locks (flock): must lie on one that has")
    with os_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lock.acquire(blocking=blocking)
        except Timeout:
            return False
        except NotImplementedError as error:
            raise missing from error
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise missing from error
            raise
    # Where there is no flock the library may fall back on a file whose existence is the lock: it outlives a holder
    # that is killed, so it is no lock to us.
    if isinstance(lock, SoftFileLock):
        lock.release()
        raise missing
    return True
