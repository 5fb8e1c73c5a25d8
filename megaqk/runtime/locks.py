"""Locks between processes of any machines, which go with their holder.

The kernel's lock (flock) ends with its process, but file systems that machines share may lack it or keep it to one
machine. So a holder also keeps a file beside it fresh, its sign of life, which every file system shows to all.
"""

import contextlib
import errno
import os
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from megaqk.runtime.files import os_errors_named

BEAT_SECONDS = 5.0
DEAD_SECONDS = 20.0
"""Without a sign for so long its holder is dead, or its machine cannot reach the file system."""
SETTLE_SECONDS = 1.0


class Lock:
    """A lock on file `path`, which is made if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sign = path.with_name(f"{path.name}.alive")
        # Ends with a reboot, as what the kernel knows of its locks does.
        self._machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._me = f"{self._machine} {uuid.uuid4()}"
        self._kernels: BaseFileLock | None = None
        self._released = threading.Event()

    def acquire(self, *, blocking: bool) -> bool:
        """Take it; without `blocking` return False where another has it.

        Raises:
            UserError: The file cannot be written.
        """
        with os_errors_named(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kernel = _acquire_kernels(self._path, blocking=blocking)
            if kernel is False:
                return False
            self._kernels = kernel
            while not self._take():
                if not blocking:
                    self._release_kernels()
                    return False
        threading.Thread(target=self._beat, name="sign of life", daemon=True).start()
        return True

    def _take(self) -> bool:
        """Make the sign of life, unless another holder gives one."""
        try:
            self._write(self._sign)
            return True
        except FileExistsError:
            pass
        owner, seen = self._look()
        if not owner:  # it has gone since, or its file is about to be written
            time.sleep(SETTLE_SECONDS)
            owner, seen = self._look()
        # Of this machine it would have the kernel's lock, were it alive.
        dead = self._kernels is not None and owner.startswith(self._machine)
        deadline = time.monotonic() + DEAD_SECONDS
        while not dead and time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS)
            if self._look() != (owner, seen):
                return False
        beside = self._sign.with_name(f".{self._sign.name}.{self._me.split()[1]}")
        self._write(beside)
        beside.replace(self._sign)
        if not dead:  # another machine may have come to the same conclusion
            time.sleep(SETTLE_SECONDS)
        return self._look()[0] == self._me

    def _write(self, path: Path) -> None:
        with path.open("xb", buffering=0) as file:
            try:
                file.write(self._me.encode())
            except OSError:  # a full disk; an empty sign would hold up whoever comes next
                path.unlink()
                raise

    def _look(self) -> tuple[str, int]:
        # NFS asks its server for times when a file is opened, not before.
        with contextlib.suppress(FileNotFoundError), self._sign.open() as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
        return "", 0

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._sign)

    def release(self) -> None:
        """Let another have it."""
        self._released.set()
        with contextlib.suppress(OSError):
            if self._look()[0] == self._me:
                self._sign.unlink()
        self._release_kernels()

    def _release_kernels(self) -> None:
        if self._kernels is not None:
            self._kernels.release()


def try_lock(path: Path) -> Lock | None:
    """Take the lock on file `path` until its `release()` or the end of the process.

    Returns:
        The lock, or None where another holds it.

    Raises:
        UserError: As `Lock.acquire`.
    """
    lock = Lock(path)
    return lock if lock.acquire(blocking=False) else None


@contextlib.contextmanager
def exclusive_lock(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock on file `path`, waiting for other processes.

    Args:
        path: The file.
        waiting: A line for stderr where another process has the lock.

    Raises:
        UserError: As `Lock.acquire`.
    """
    lock = Lock(path)
    if not lock.acquire(blocking=False):
        if waiting is not None:
            sys.stderr.write(f"{waiting}\n")
            sys.stderr.flush()
        lock.acquire(blocking=True)
    try:
        yield
    finally:
        lock.release()


def _acquire_kernels(path: Path, *, blocking: bool) -> BaseFileLock | Literal[False] | None:
    """The kernel's lock; False where another process has it, None where the file system has none."""
    lock: BaseFileLock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # `megaqk runs` looks at a lock by holding it for a moment.
            lock.acquire(timeout=-1 if blocking else SETTLE_SECONDS, poll_interval=0.05)
    except Timeout:
        return False
    except NotImplementedError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            return None
        raise
    # Where there is no flock the library may fall back on a file whose existence is the lock: it outlives its holder.
    if isinstance(lock, SoftFileLock):
        lock.release()
        return None
    return lock
