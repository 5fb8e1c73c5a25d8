"""`run.dir`: one job at a time writes into it."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from megaqk.errors import UserError
from megaqk.runtime import signals
from megaqk.runtime.channel import Failure
from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.runtime.locks import try_lock

RESULT_FILE = "result.json"
STOP_FILE = "stop"
"""Whoever makes it has the run stop."""
OWNER_FILE = ".owner"
"""Names the job that has the folder: locks may be of one machine alone, and a folder too."""


class RunFolder:
    """The folder of a run, which rank 0 writes for the job.

    Args:
        path: `run.dir`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None
        self._owner = ""
        # What this start knows of the run; the file has it of the last save.
        self.result: dict[str, Any] = {}

    def claim(self) -> str:
        """Make the folder, and hold it for this job until `release` or the end of the process.

        Returns:
            What names this job there, for `check_shared`.

        Raises:
            UserError: If another job holds it, or it cannot be written.
        """
        with os_errors_named(self.path):
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = try_lock(self.path / ".lock")
        if self._lock is None:
            raise UserError(f"run.dir = {self.path}: another job is writing to it; give this one another folder")
        self._owner = f"{socket.gethostname()}, process {os.getpid()}, {time.time_ns()}"
        with written_whole(self.path / OWNER_FILE) as beside:
            beside.write_text(self._owner)
        return self._owner

    def check_shared(self, owner: str) -> None:
        """Refuse a folder that is another one than that of rank 0, who has claimed it and got `owner`.

        Raises:
            UserError: In that case.
        """
        self._owner = owner
        if self._read(OWNER_FILE) != owner:
            raise UserError(
                f"run.dir = {self.path}: is not the folder that rank 0 has claimed: must be one that all nodes share"
            )

    def write_result(self, content: dict[str, Any]) -> None:
        """Write `result.json`, whole or not at all; a number that is not finite becomes null.

        Raises:
            UserError: Another job has got hold of the folder in spite of the lock; what is there is left to it.
        """
        if (owner := self._read(OWNER_FILE)) != self._owner:
            raise UserError(
                f"run.dir = {self.path}: another job ({owner}) has begun to write to it, which the locks of its file "
                "system have let happen; give each job a folder of its own"
            )
        self.result = content
        plain = json.loads(json.dumps(content), parse_constant=lambda _: None)
        with written_whole(self.path / RESULT_FILE) as beside:
            beside.write_text(json.dumps(plain, indent=1) + "\n")

    def note_failure(self, failure: Failure) -> None:
        """Put the last words of a run into its `result.json`, which belongs to whoever holds the folder.

        What a start was refused that never began says nothing of a run that is finished.
        """
        if not self._owner or (self.is_finished() and not self.result):
            return
        if failure.stopped_by == signals.name_of(signals.STOP_FILE):  # it has been heeded
            with suppress(OSError):
                (self.path / STOP_FILE).unlink()
        # The reason may be a disk that takes no file: what has ended the run is said all the same.
        with suppress(UserError):
            ends = {"state": failure.state, "last_words": failure.line, "stopped_by": failure.stopped_by}
            self.write_result({**self._written(), **self.result, **ends})

    def stop_wanted(self) -> bool:
        """Whether the stop file is there."""
        return (self.path / STOP_FILE).is_file()

    def is_finished(self) -> bool:
        """Whether an earlier start has brought the run to its end, and written that down."""
        return self._written().get("state") == "finished"

    def _written(self) -> dict[str, Any]:
        with suppress(ValueError, TypeError):
            return dict(json.loads(self._read(RESULT_FILE)))
        return {}

    def _read(self, name: str) -> str:
        with suppress(OSError):
            return (self.path / name).read_text()
        return ""

    def release(self) -> None:
        """Let another job have the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None
