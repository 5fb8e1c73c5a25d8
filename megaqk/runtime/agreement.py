"""Agreement between the processes of a job: what may fail on one of them fails on all.

A rank that gives up alone leaves the others waiting for it. Whatever may fail is therefore done in `agreed`, which
tells all ranks of a failure or an interrupt of any.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from megaqk.errors import AgreedError, UserError
from megaqk.runtime import signals

_T = TypeVar("_T")


class Comm(Protocol):
    """A group of processes that work together.

    Attributes:
        rank: This process, in [0, size).
        size: Number of processes.
        local_size: Number of them on this machine.
    """

    rank: int
    size: int
    local_size: int

    def allgather(self, value: _T) -> list[_T]:
        """Return every rank's value, in rank order, on every rank."""


class Solo:
    """One process."""

    rank = 0
    size = 1
    local_size = 1

    def allgather(self, value: _T) -> list[_T]:
        """Return the only value."""
        return [value]


@dataclass(frozen=True)
class _Outcome(Generic[_T]):
    """What became of an action: a result, a failure in words, or the number of a signal."""

    result: _T | None = None
    failure: str | None = None
    signal: int = 0


def _outcome(action: Callable[[], _T]) -> _Outcome[_T]:
    try:
        return _Outcome(action())
    except UserError as error:
        return _Outcome(failure=str(error))
    except OSError as error:
        if error.filename is None:  # no file that the user could mend
            raise
        return _Outcome(failure=f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt as error:
        return _Outcome(signal=error.number if isinstance(error, signals.Interrupted) else signal.SIGINT)


def agreed(comm: Comm, action: Callable[[], _T], *, interruptible: bool = True) -> list[_T]:
    """Run `action` on every rank and return every rank's result on every rank.

    Args:
        comm: The ranks.
        action: What to do; it must not exchange anything itself.
        interruptible: Let a signal end the action (see `stop_signals`), or leave it to the next one.

    Raises:
        AgreedError: The action failed on some rank in a way that the user can mend: on all ranks, naming the first such
            rank unless all have met the same.
        Interrupted: Some rank was interrupted: on all ranks.
    """
    outcomes = comm.allgather(_outcome((lambda: signals.interruptible(action)) if interruptible else action))
    failures = {rank: outcome.failure for rank, outcome in enumerate(outcomes) if outcome.failure is not None}
    for rank, failure in failures.items():
        common = len(failures) == comm.size and len(set(failures.values())) == 1
        raise AgreedError(failure if common else f"{failure} (rank {rank})")
    if number := max(outcome.signal for outcome in outcomes):
        raise signals.Interrupted(number)
    return [outcome.result for outcome in outcomes]  # type: ignore[misc]  # no failure, hence a result


def each(comm: Comm, action: Callable[[], _T]) -> _T:
    """Run `action` as `agreed` does, and return to each rank its own result alone, which need not travel."""
    own: list[_T] = []
    agreed(comm, lambda: own.append(action()))
    return own[0]
