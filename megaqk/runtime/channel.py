"""The place in a job's store where its processes tell each other why it ends, and that they are alive."""

import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from megaqk.errors import FAULT
from megaqk.runtime import signals
from megaqk.runtime.launch import Launch
from megaqk.runtime.logs import write_terminal
from megaqk.runtime.pulse import Pulse, Sign

POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""How long a rank that knows better gets to speak, and a main thread to end by itself."""
ANSWER_SECONDS = 10.0
"""How long a rank gets at least to say that it is alive: its main thread need but let another one work."""

_FAILURE, _SAID, _STOP = "megaqk/failure", "megaqk/said", "megaqk/stop"
_ROLL, _HOST = "megaqk/roll", "megaqk/host"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job ends before its time.

    Attributes:
        rank: The rank that met it.
        reporter: The rank that tells of it; another one if `rank` cannot.
        status: Exit status of every rank.
        state: What becomes of the run: refused, diverged, stopped or failed.
        line: What to tell the user.
        stopped_by: What has asked a run to stop.
        stacks: Whether every rank puts its stack into its log.
    """

    rank: int
    reporter: int
    status: int
    state: str
    line: str
    stopped_by: str = ""
    stacks: bool = False


class Channel:
    """This rank's end.

    Args:
        launch: This process.
        last_words: Called once, on rank 0 if it lives, with what ended the job.
        pulse: Whether this process gets on.
        patience: Seconds without a step of any rank after which the job is ended; None: it is left to hang.
        log: Where this rank logs.
    """

    def __init__(
        self,
        launch: Launch,
        last_words: Callable[[Failure], None],
        *,
        pulse: Pulse,
        patience: float | None,
        log: Path,
    ) -> None:
        import torch.distributed as dist

        self._launch, self._last_words = launch, last_words
        self._pulse, self._patience, self._log = pulse, patience, log
        # A connection of its own: the first one may be waiting for a rank that will never come.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        if patience is not None:
            self._store.set_timeout(timedelta(seconds=max(patience, GRACE_SECONDS)))
        self._store.set(f"{_HOST}/{launch.rank}", socket.gethostname())
        self._calls, self._settled = 0, time.monotonic()
        self._answer = max(ANSWER_SECONDS, (patience or 0.0) / 10)
        self._over, self._ending = threading.Event(), threading.Event()
        self._saying, self._passed_on = threading.Lock(), False
        threading.Thread(target=self._watch, name="watch for failures", daemon=True).start()

    def claim(self, mine: Failure, *, hearsay: bool = False) -> Failure:
        """Note a failure unless there is one already; return the first.

        Args:
            mine: What this rank has met.
            hearsay: It is but a broken connection, of which another rank may know more.
        """
        deadline = time.monotonic() + (GRACE_SECONDS if hearsay else 0)
        try:
            while time.monotonic() < deadline and not self._store.check([_FAILURE]):
                time.sleep(0.05)
            return Failure(**json.loads(self._store.compare_set(_FAILURE, "", json.dumps(asdict(mine)))))
        except RuntimeError:  # the store has gone with the rank or the launcher that served it
            return mine

    def say(self, failure: Failure) -> None:
        """Have the line printed once by all ranks together: by rank 0 if it can, else by the one that reports."""
        with self._saying:
            me = self._launch.rank
            if me and (failure.reporter != me or self._was_said(failure)):
                return
            try:
                said = self._store.check([_SAID])
            except RuntimeError:
                said = False
            if said:
                return
            if me == 0 or failure.rank == 0:
                self._last_words(failure)
            write_terminal(said_of(failure))
            with suppress(RuntimeError):
                self._store.set(_SAID, "1")

    def _was_said(self, failure: Failure) -> bool:
        if failure.rank == 0:  # who reports of rank 0 knows that it will say nothing
            return False
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            while not self._store.check([_SAID]) and time.monotonic() < deadline:
                time.sleep(0.05)
            return bool(self._store.check([_SAID]))
        except RuntimeError:
            return True

    def lost(self, rank: int) -> None:
        """End the job: a rank has died without a word."""
        if self._over.is_set():
            return
        self._end_with(self.claim(self._failed(rank, f"{self._name(rank)} is gone: killed, or its machine failed")))

    def _failed(self, rank: int, line: str, *, stacks: bool = False) -> Failure:
        me = self._launch.rank
        return Failure(rank=rank, reporter=me, status=FAULT, state="failed", line=line, stacks=stacks)

    def _name(self, rank: int) -> str:
        with suppress(RuntimeError):
            return f"rank {rank} on {self._store.get(f'{_HOST}/{rank}').decode()}"
        return f"rank {rank}"

    def _watch(self) -> None:
        try:
            while not self._over.wait(POLL_SECONDS):
                if self._store.check([_FAILURE]):
                    return self._end_with(Failure(**json.loads(self._store.get(_FAILURE))))
                if self._pulse.is_busy:
                    self._pass_on_signals()
                if failure := self._roll_call():
                    return self._end_with(self.claim(failure))
        except RuntimeError:
            # Its main thread may know more, or end well; a launcher that was killed leaves its ranks alone.
            if not self._over.wait(GRACE_SECONDS):
                line = "the job's store does not answer: the launcher or rank 0, which keeps it, is gone or stopped"
                self._end_with(self._failed(self._launch.rank, line, stacks=True))

    def _pass_on_signals(self) -> None:
        """Have a signal to any rank reach all: while one prepares the data the others only wait for it."""
        if (number := signals.requested()) and not self._passed_on:
            self._store.set(_STOP, str(int(number)))
            self._passed_on = True
        elif not number and self._store.check([_STOP]):
            signals.request(int(self._store.get(_STOP)))

    def _roll_call(self) -> Failure | None:
        """Answer whether this rank lives, or ask all of them if nothing gets on here."""
        call = f"{_ROLL}/{self._calls}"
        now = time.monotonic()
        # Since the last call, which has been given its time to be judged, or the last step.
        quiet = min(self._pulse.age(), now - self._settled)
        asked = bool(self._store.check([call]))
        if not asked and (self._patience is None or quiet < self._patience):
            return None
        judge = not asked and self._store.add(call, 1) == 1
        self._store.set(f"{call}/{self._launch.rank}", json.dumps(asdict(self._pulse.sign())))
        self._calls, self._settled = self._calls + 1, now + self._answer
        return self._judge(call) if judge else None

    def _judge(self, call: str) -> Failure | None:
        patience, ranks = self._patience or 0.0, range(self._launch.world_size)
        deadline = time.monotonic() + self._answer
        missing = [*ranks]
        while missing and time.monotonic() < deadline and not self._over.wait(POLL_SECONDS / 5):
            missing = [rank for rank in missing if not self._store.check([f"{call}/{rank}"])]
        if self._over.is_set():
            return None
        still = f"no step has ended for {patience:g} s (training.watchdog)"
        if missing:
            line = f"{self._name(missing[0])} does not answer: stopped, or its machine failed; {still}"
            return self._failed(missing[0], f"{line}; the others' stacks are in logs/", stacks=True)
        signs = [Sign(**json.loads(self._store.get(f"{call}/{rank}"))) for rank in ranks]
        if any(sign.busy or sign.age < patience for sign in signs):
            return None
        places: dict[str, list[int]] = {}
        for rank, sign in enumerate(signs):
            places.setdefault(sign.place, []).append(rank)
        # The odd ones out first: they are what the others wait for.
        at = [f"{_ranks(who)} at {place}" for place, who in sorted(places.items(), key=lambda item: len(item[1]))]
        rank = min(places.values(), key=len)[0]
        return self._failed(rank, f"{still}: {'; '.join(at)}; every rank's stack is in logs/", stacks=True)

    def _end_with(self, failure: Failure) -> None:
        if failure.stacks and not self._ending.is_set():
            self._ending.set()
            with suppress(OSError), self._log.open("a") as log:
                log.write(f"{failure.line}\n")
                log.flush()
                faulthandler.dump_traceback(log)
        try:
            self.say(failure)
        finally:
            # The main thread ends by itself where its connections break; in a collective over NCCL it would not.
            if not self._over.wait(GRACE_SECONDS):
                os._exit(failure.status)

    def close(self) -> None:
        """End the watch."""
        self._over.set()


def said_of(failure: Failure) -> str:
    """The line, as the terminal shows it."""
    return f"megaqk: {'' if failure.state == 'stopped' else 'error: '}{failure.line}\n"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
