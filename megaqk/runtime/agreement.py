"""The few collectives that preparation needs, for one process or for MPI ranks, and how all ranks end together.

A rank that gives up alone leaves the others waiting for it. Whatever may fail is therefore done in `agreed`, which
tells all ranks of a failure or an interrupt of any.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from megaqk.errors import UserError

_T = TypeVar("_T")
# What the common launchers tell each process about how many there are.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Comm(Protocol):
    """A group of processes that work on one corpus.

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

    def abort(self) -> None:
        """End all ranks; called when this one cannot go on and the others would wait for it."""


class Solo:
    """One process."""

    rank = 0
    size = 1
    local_size = 1

    def allgather(self, value: _T) -> list[_T]:
        """Return the only value."""
        return [value]

    def abort(self) -> None:
        """Do nothing: nobody waits."""


class Mpi:
    """All ranks of MPI_COMM_WORLD."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(f"MPI is not usable here: {error}; install megaqk[mpi] and an MPI library") from error
        self._world: Any = MPI.COMM_WORLD
        self.rank = int(self._world.Get_rank())
        self.size = int(self._world.Get_size())
        self.local_size = int(self._world.Split_type(MPI.COMM_TYPE_SHARED).Get_size())

    def allgather(self, value: _T) -> list[_T]:
        """Return every rank's value, in rank order, on every rank."""
        gathered: list[_T] = self._world.allgather(value)
        return gathered

    def abort(self) -> None:
        """End all ranks with status 1."""
        self._world.Abort(1)


def find_comm(*, mpi: bool) -> Comm:
    """Return the MPI world where asked for or where an MPI launcher started several processes, else `Solo`.

    Raises:
        UserError: MPI is needed and not installed.
    """
    launched = any(os.environ.get(name, "") not in ("", "0", "1") for name in _SIZE_VARIABLES)
    return Mpi() if mpi or launched else Solo()


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM has ended the work of all ranks at the same place.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Stop:
    """Which signal has asked this process to stop, and whether it may be interrupted right now."""

    asked = 0
    welcome = False

    def note(self, number: int, _frame: object) -> None:
        # The first signal counts; later ones must not break what it has set going.
        self.asked = self.asked or number
        if self.welcome:
            self.welcome = False
            raise Interrupted(self.asked)

    def interruptible(self, action: Callable[[], _T]) -> _T:
        try:
            self.welcome = True
            if self.asked:
                raise Interrupted(self.asked)
            return action()
        finally:
            self.welcome = False


_stop = _Stop()


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Interrupted` on all ranks, out of `agreed` and nowhere else."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        # A shell starts what runs in the background with SIGINT ignored.
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop.note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _stop.asked = 0


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
        return _Outcome(signal=error.number if isinstance(error, Interrupted) else signal.SIGINT)


def agreed(comm: Comm, action: Callable[[], _T], *, interruptible: bool = True) -> list[_T]:
    """Run `action` on every rank and return every rank's result on every rank.

    Args:
        comm: The ranks.
        action: What to do; it must not exchange anything itself.
        interruptible: Let a signal end the action (see `stop_signals`), or leave it to the next one.

    Raises:
        UserError: The action failed on some rank in a way that the user can mend: on all ranks.
        Interrupted: Some rank was interrupted: on all ranks.
    """
    gathered = comm.allgather(_outcome((lambda: _stop.interruptible(action)) if interruptible else action))
    for outcome in gathered:
        if outcome.failure is not None:
            raise UserError(outcome.failure)
    if number := max(outcome.signal for outcome in gathered):
        raise Interrupted(number)
    return [outcome.result for outcome in gathered]  # type: ignore[misc]  # no failure, hence a result


def all_done(comm: Comm, action: Callable[[], _T]) -> _T:
    """Run `action` on every rank and return this rank's result once all have theirs; raises as `agreed`."""
    own: list[_T] = []
    agreed(comm, lambda: own.append(action()))
    return own[0]


class _OneExchange:
    """The ranks as an action sees them that exchanges something once."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self.rank, self.size, self.local_size = comm.rank, comm.size, comm.local_size
        self.done = False

    def allgather(self, value: _T) -> list[_T]:
        # From here on the other ranks know of whatever happens.
        _stop.welcome = False
        self.done = True
        return agreed(self._comm, lambda: value)

    def abort(self) -> None:
        self._comm.abort()


def all_done_exchanging(comm: Comm, action: Callable[[Comm], _T]) -> _T:
    """Run on every rank an action that exchanges something once, by the `Comm` it is given; raises as `agreed`."""
    exchange = _OneExchange(comm)
    try:
        return _stop.interruptible(lambda: action(exchange))
    except (UserError, OSError, KeyboardInterrupt) as error:
        if not exchange.done:
            agreed(comm, lambda cause=error: _raise(cause), interruptible=False)  # type: ignore[misc]
        raise


def _raise(error: BaseException) -> NoReturn:
    raise error
