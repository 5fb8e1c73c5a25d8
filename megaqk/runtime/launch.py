"""What a launcher tells a process of its place in the job: the one reader of `RANK` and its kin."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from megaqk.errors import UserError

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where MPI's launchers say how many processes they started."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those that were started together.

    Attributes:
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        local_rank: This process among those of its machine.
        local_size: Number of processes on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def export(self) -> None:
        """Put the facts where torch and DeepSpeed look for them; a process alone gets a rendezvous of its own."""
        if "MASTER_ADDR" not in os.environ:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world_size), LOCAL_RANK=str(self.local_rank))


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """The facts as torchrun gives them; a process that was started without a launcher is a world of one.

    Raises:
        UserError: If a variable is missing beside `RANK`, or is no number.
    """
    if "RANK" not in environment:
        return Launch()
    try:
        rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Launch(
            rank=rank, world_size=size, local_rank=local, local_size=int(environment.get("LOCAL_WORLD_SIZE", size))
        )
    except KeyError as missing:
        raise UserError(f"{missing.args[0]}: must be set beside RANK, as torchrun does") from None
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK: must be integers ({error})") from None


def started_by_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an MPI launcher started several processes."""
    return any(environment.get(name, "") not in ("", "0", "1") for name in MPI_SIZES)
