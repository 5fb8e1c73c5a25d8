"""How all processes of a job end when one of them fails: within seconds, and with one line.

The rank that fails writes what happened into the job's store before anything else. The others learn of it there,
whatever they are doing: waiting in a collective that will never complete, or seeing the connection break. A rank that
dies without a word is named by the one that watches it, and one that stands still by those that wait for it.
"""

import atexit
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from megaqk.errors import (
    AGAIN,
    FAULT,
    AgreedError,
    AlreadySaidError,
    DivergedError,
    FaultError,
    StoppedError,
    user_error,
)
from megaqk.runtime import signals
from megaqk.runtime.channel import Channel, Failure, said_of
from megaqk.runtime.launch import OWN_LAUNCHER, UNHEARD, Launch
from megaqk.runtime.lifeline import Lifeline
from megaqk.runtime.logs import write_terminal
from megaqk.runtime.pulse import Pulse

if TYPE_CHECKING:
    import torch.distributed as dist

logger = logging.getLogger("megaqk")


def describe(error: BaseException, launch: Launch) -> Failure:
    """What an exception means for the job."""
    refusal, rank = user_error(error), launch.rank
    if isinstance(error, KeyboardInterrupt):
        by = str(error) or "SIGINT"
        line = f"stopped by {by} before the first step; the same command goes on"
        return Failure(rank=rank, reporter=rank, status=AGAIN, state="stopped", line=line, stopped_by=by)
    if isinstance(refusal, StoppedError):
        line, by = str(refusal), refusal.by
        return Failure(rank=rank, reporter=rank, status=AGAIN, state="stopped", line=line, stopped_by=by)
    if refusal is not None:
        state = "diverged" if isinstance(refusal, DivergedError) else "refused"
        # Beside what all ranks have agreed on, this is what one rank alone has met.
        alone = launch.world_size > 1 and not isinstance(refusal, AgreedError)
        line = f"{refusal}{f' (rank {rank})' if alone else ''}"
        return Failure(rank=rank, reporter=rank, status=refusal.status, state=state, line=line)
    words = "the connection to another rank is lost" if _is_lost(error) else _first_line(error)
    line = f"rank {rank} failed: {type(error).__name__}: {words}; its traceback is in logs/rank{rank}.log below run.dir"
    return Failure(rank=rank, reporter=rank, status=FAULT, state="failed", line=line)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _is_lost(error: BaseException) -> bool:
    return user_error(error) is None and any(name in _first_line(error) for name in ("gloo", "NCCL"))


@contextmanager
def meeting(launch: Launch) -> Iterator[None]:
    """The meeting of the processes: waiting for one that does not come, nothing in Python can be raised.

    Raises:
        FaultError: If they have not met.
    """
    import torch.distributed as dist

    def end(number: int) -> NoReturn:
        if launch.launcher == OWN_LAUNCHER:  # it knows who asks, or which rank has died
            os._exit(UNHEARD)
        if launch.rank == 0:
            write_terminal(said_of(describe(signals.Interrupted(number), launch)))
        os._exit(AGAIN)

    try:
        with signals.ending_at_once(end):
            yield
    except dist.DistError as error:
        raise FaultError(f"the {launch.world_size} processes of the job have not met: {_first_line(error)}") from error


@contextmanager
def failing_together(
    launch: Launch,
    group: "dist.ProcessGroup",
    last_words: Callable[[Failure], None],
    *,
    pulse: Pulse,
    patience: float | None,
    log: Path,
) -> Iterator[None]:
    """A block of which no rank leaves the others behind; the process group must have been started.

    Args:
        launch: This process.
        group: All processes, over gloo and without a limit of time.
        last_words: Called once, on rank 0 if it lives, with what ended the job.
        pulse: Whether this process gets on.
        patience: Seconds without a step of any rank after which the job is ended; None: it is left to hang.
        log: Where this rank logs.

    Raises:
        AlreadySaidError: The job has ended; its line has been printed. A defect that a process alone meets it raises.
    """
    if launch.world_size == 1:
        try:
            yield
        except BaseException as error:
            logger.debug("the run ends", exc_info=error)
            failure = describe(error, launch)
            last_words(failure)
            if failure.status == FAULT:
                raise
            write_terminal(said_of(failure))
            raise AlreadySaidError(failure.status) from error
        return
    channel = Channel(launch, last_words, pulse=pulse, patience=patience, log=log)
    lifeline = Lifeline(launch, group, channel.lost)
    try:
        yield
        lifeline.close()
    except BaseException as error:
        failure = channel.claim(describe(error, launch), hearsay=_is_lost(error))
        logger.debug("rank %d ends", launch.rank, exc_info=error)
        channel.say(failure)
        # Not through the end of the interpreter, which may wait for ranks that are gone, or abort over them.
        atexit.register(os._exit, failure.status)
        raise AlreadySaidError(failure.status) from error
    finally:
        channel.close()
