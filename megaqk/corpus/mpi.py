"""The ranks of an MPI launcher, which divide a preparation."""

from typing import Any, TypeVar

from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, Solo
from megaqk.runtime.launch import started_by_mpi

_T = TypeVar("_T")


class Mpi:
    """All ranks of MPI_COMM_WORLD; see `Comm`."""

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
    """Return the MPI world where asked for or where an MPI launcher started several processes, else `Solo`."""
    return Mpi() if mpi or started_by_mpi() else Solo()
