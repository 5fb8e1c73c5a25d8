import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock._unix
import pytest

from megaqk.errors import UserError
from megaqk.runtime import locks
from megaqk.runtime.locks import exclusive_lock, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from megaqk.runtime import locks
from megaqk.runtime.locks import try_lock
lock = try_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_until_it_is_released_or_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    lock = try_lock(path)
    assert lock is not None
    lock.release()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert try_lock(path) is None
    finally:
        holder.kill()
        holder.communicate()
    with exclusive_lock(path):
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "DEAD_SECONDS", 1.0)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))])
def test_a_file_system_without_locks_shows_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", refuse)
    first = try_lock(tmp_path / ".lock")
    assert first is not None
    begun = time.monotonic()
    assert try_lock(tmp_path / ".lock") is None
    assert time.monotonic() - begun < locks.DEAD_SECONDS
    first.release()
    with exclusive_lock(tmp_path / ".lock"):
        assert try_lock(tmp_path / ".lock") is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("alive", [True, False])
def test_the_holder_may_be_on_another_machine(tmp_path: Path, alive: bool) -> None:
    """Where the kernel's locks are of one machine alone."""
    sign, over = tmp_path / ".lock.alive", threading.Event()
    sign.write_text("another-machine 1")

    def live() -> None:
        while not over.wait(0.1):
            os.utime(sign)

    holder = threading.Thread(target=live)
    if alive:
        holder.start()
    lock = try_lock(tmp_path / ".lock")
    assert (lock is None) is alive
    over.set()
    if alive:
        holder.join()
    else:
        assert lock is not None
        assert try_lock(tmp_path / ".lock") is None
        lock.release()
        assert not sign.exists()


@pytest.mark.usefixtures("quick")
def test_of_two_machines_that_see_a_dead_holder_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_acquire_kernels", lambda *_, **__: None)
    (tmp_path / ".lock.alive").write_text("another-machine 1")
    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(lambda _: try_lock(tmp_path / ".lock"), range(2)))
    assert sum(lock is not None for lock in taken) == 1
    for lock in taken:
        if lock is not None:
            lock.release()


def test_a_look_at_the_lock_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.3, lambda: fcntl.flock(looker, fcntl.LOCK_UN)).start()
        lock = try_lock(tmp_path / ".lock")
    assert lock is not None
    lock.release()


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/\.lock: (Not a directory|File exists)"):
        try_lock(tmp_path / "file" / ".lock")
