"""The ranks of an MPI launcher."""

from typing import Any, TypeVar

from megaqk.errors import UserError

_T = TypeVar("_T")


class Mpi:
    """All ranks of MPI_COMM_WORLD; see `Comm`. Each makes one at the same moment."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(f"MPI is not usable here: {error}; install megaqk[mpi] and an MPI library") from error
        self._world: Any = MPI.COMM_WORLD
        self.rank = int(self._world.Get_rank())
        self.size = int(self._world.Get_size())
        machine = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = int(machine.Get_rank()), int(machine.Get_size())

    def allgather(self, value: _T) -> list[_T]:
        """Return every rank's value, in rank order, on every rank."""
        gathered: list[_T] = self._world.allgather(value)
        return gathered

    def abort(self) -> None:
        """End all ranks with status 1."""
        self._world.Abort(1)
