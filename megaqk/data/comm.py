"""The few collectives that preparation needs, for one process or for MPI ranks."""

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

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


def agreed(comm: Comm, action: Callable[[], _T]) -> list[_T]:
    """Run `action` on every rank and return every rank's result on every rank.

    Raises:
        UserError: The action raised one on some rank: on all ranks, so that none waits for a rank that gave up.
    """
    failure: str | None = None
    result: _T | None = None
    try:
        result = action()
    except UserError as error:
        failure = str(error)
    gathered = comm.allgather((failure, result))
    failures = [failure for failure, _ in gathered if failure is not None]
    if failures:
        raise UserError(failures[0])
    return [result for _, result in gathered]  # type: ignore[misc]  # no failure, hence a result
