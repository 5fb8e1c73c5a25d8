"""The ranks of an MPI launcher, which divide a preparation."""

import os
from typing import Any, TypeVar

from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, Solo

_T = TypeVar("_T")
# What the common launchers tell each process about how many there are.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


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
    launched = any(os.environ.get(name, "") not in ("", "0", "1") for name in _SIZE_VARIABLES)
    return Mpi() if mpi or launched else Solo()
