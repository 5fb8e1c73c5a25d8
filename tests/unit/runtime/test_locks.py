import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock._unix
import pytest

from megaqk.errors import UserError
from megaqk.runtime.locks import exclusive_lock, try_lock

HOLDER = """
import sys, time
from pathlib import Path
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


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))])
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", refuse)
    with pytest.raises(UserError, match=r"/\.lock: its file system has no locks \(flock\): must lie on one"):
        try_lock(tmp_path / ".lock")


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/\.lock: (Not a directory|File exists)"):
        try_lock(tmp_path / "file" / ".lock")
