"""How all processes of a job end when one of them fails: within seconds, and with one line.

The rank that fails writes what happened into the job's store before anything else. The others learn of it there,
whatever they are doing: waiting in a collective that will never complete, or seeing the connection break. The first
rank says it if it still can, since its output is what people look at, otherwise the rank that failed does.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from megaqk.errors import FAULT, INTERRUPTED, REFUSED, AgreedError, AlreadySaidError, DivergedError, user_error
from megaqk.runtime.launch import Launch

POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
_FAILURE, _SAID = "megaqk/failure", "megaqk/said"

logger = logging.getLogger("megaqk")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job ends.

    Attributes:
        rank: The rank that met it.
        status: Exit status of every rank.
        state: What becomes of the run: refused, diverged, interrupted or failed.
        line: What to tell the user.
    """

    rank: int
    status: int
    state: str
    line: str


def describe(error: BaseException, launch: Launch) -> Failure:
    """What an exception means for the job."""
    refusal, rank = user_error(error), launch.rank
    if isinstance(error, KeyboardInterrupt):
        return Failure(rank=rank, status=INTERRUPTED, state="interrupted", line=f"interrupted (rank {rank})")
    if refusal is not None:
        state = "diverged" if isinstance(refusal, DivergedError) else "refused"
        # Beside what all ranks have agreed on, this is what one rank alone has met.
        alone = launch.world_size > 1 and not isinstance(refusal, AgreedError)
        line = f"{refusal}{f' (rank {rank})' if alone else ''}"
        return Failure(rank=rank, status=REFUSED, state=state, line=line)
    words = (str(error).strip().splitlines() or [""])[0]
    if "gloo" in words or "NCCL" in words:
        words = "the connection to another rank is lost"
    line = f"rank {rank} failed: {type(error).__name__}: {words}; its traceback is in logs/rank{rank}.log below run.dir"
    return Failure(rank=rank, status=FAULT, state="failed", line=line)


class _Channel:
    """The place in the job's store where the first failure stands."""

    def __init__(self, launch: Launch, last_words: Callable[[Failure], None]) -> None:
        import torch.distributed as dist

        self._launch = launch
        self._last_words = last_words
        # A connection of its own: the first one may be waiting for a rank that will never come.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._over = threading.Event()
        self._saying = threading.Lock()
        threading.Thread(target=self._watch, name="watch for failures", daemon=True).start()

    def claim(self, mine: Failure) -> Failure:
        """Note a failure unless there is one already; return the first."""
        try:
            return Failure(**json.loads(self._store.compare_set(_FAILURE, "", json.dumps(asdict(mine)))))
        except RuntimeError:  # the store has gone with the rank or the launcher that served it
            return mine

    def say(self, failure: Failure) -> None:
        """Have the line printed once by all ranks together."""
        with self._saying:
            first = self._launch.rank == 0
            if not first and (failure.rank != self._launch.rank or self._was_said(GRACE_SECONDS)):
                return
            if not self._was_said(0):
                if first:
                    self._last_words(failure)
                # One write, newline included: ranks share the stream.
                sys.stderr.write(f"megaqk: error: {failure.line}\n")
                sys.stderr.flush()
                with suppress(RuntimeError):
                    self._store.set(_SAID, "1")

    def _was_said(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        try:
            while not self._store.check([_SAID]):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.05)
        except RuntimeError:
            return False
        return True

    def _watch(self) -> None:
        try:
            while not self._store.check([_FAILURE]):
                if self._over.wait(POLL_SECONDS):
                    return
            failure = Failure(**json.loads(self._store.get(_FAILURE)))
        except RuntimeError:  # the store is gone: the main thread sees its peers go too
            return
        if failure.rank == self._launch.rank:
            return
        try:
            self.say(failure)
        finally:
            # The main thread ends by itself where its connections break; in a collective over NCCL it would not.
            if not self._over.wait(GRACE_SECONDS):
                os._exit(failure.status)

    def close(self) -> None:
        """End the watch."""
        self._over.set()


@contextmanager
def failing_together(launch: Launch, last_words: Callable[[Failure], None]) -> Iterator[None]:
    """A block of which no rank leaves the others behind; the process group must have been started.

    Args:
        launch: This process.
        last_words: Called on rank 0, once, with what ended the job.

    Raises:
        AlreadySaidError: Some rank failed; its line has been printed. A process alone raises what it met.
    """
    if launch.world_size == 1:
        try:
            yield
        except BaseException as error:
            logger.debug("the run ends", exc_info=error)
            last_words(describe(error, launch))
            raise
        return
    channel = _Channel(launch, last_words)
    try:
        yield
    except BaseException as error:
        mine = describe(error, launch)
        failure = channel.claim(mine)
        logger.debug("rank %d ends", launch.rank, exc_info=error)
        channel.say(failure)
        raise AlreadySaidError(failure.status) from error
    finally:
        channel.close()
