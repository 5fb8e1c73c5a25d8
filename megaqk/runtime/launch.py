"""What a launcher tells a process of its place in the job: the one reader of `RANK` and its kin."""

import os
import re
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
        address: Where rank 0 can be reached, unless `MASTER_ADDR` says it.
        port: The same for `MASTER_PORT`; 0 is one that is free.
        binds_gpus: Whether the launcher shows each process GPUs of its own.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    binds_gpus: bool = False

    def export(self) -> None:
        """Put the facts where torch and DeepSpeed look for them."""
        os.environ.setdefault("MASTER_ADDR", self.address)
        if "MASTER_PORT" not in os.environ:
            os.environ["MASTER_PORT"] = str(self.port or _free_port())
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world_size), LOCAL_RANK=str(self.local_rank))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """The facts as torchrun or Slurm's srun give them; a process without either is a world of one.

    Raises:
        UserError: If a variable is missing, is no number, or the rank is not in the world.
    """
    # A batch script has SLURM_PROCID and SLURM_NTASKS too; only what srun started is a task of a step.
    by_srun = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    if "RANK" not in environment and not by_srun:
        return Launch()
    try:
        launch = _read_torchrun(environment) if "RANK" in environment else _read_srun(environment)
    except KeyError as missing:
        beside = "RANK, as torchrun does" if "RANK" in environment else "SLURM_STEP_NUM_TASKS, as srun does"
        raise UserError(f"{missing.args[0]}: must be set beside {beside}") from None
    except (ValueError, IndexError) as error:
        names = "RANK, WORLD_SIZE, LOCAL_RANK" if "RANK" in environment else "SLURM_JOB_ID, SLURM_PROCID and their like"
        raise UserError(f"{names}: must be integers ({error})") from None
    if not 0 <= launch.rank < launch.world_size:
        raise UserError(f"rank = {launch.rank}: must be at least 0 and below the world size, {launch.world_size}")
    return launch


def _read_torchrun(environment: Mapping[str, str]) -> Launch:
    rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
    return Launch(rank=rank, world_size=size, local_rank=local, local_size=local_size)


def _read_srun(environment: Mapping[str, str]) -> Launch:
    """The facts of a task of an srun step, which all of its tasks see alike."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    # Tasks of each node: `8(x2),4` is 8, 8, 4.
    tasks = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    return Launch(
        rank=int(environment["SLURM_PROCID"]),
        world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=tasks[int(environment["SLURM_NODEID"])],
        binds_gpus="SLURM_GPUS_PER_TASK" in environment or "SLURM_TRES_PER_TASK" in environment,
        address=_first_host(environment["SLURM_STEP_NODELIST"]),
        # Below the ports that the kernel hands out, and another one for each step that may run beside this one.
        port=15000 + (7 * job + step) % 15000,
    )


def _first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: of `gpu[03-05,9],login` it is `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])+", hosts)
    assert first is not None, "a step has a node"
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])


def started_by_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an MPI launcher started several processes."""
    return any(environment.get(name, "") not in ("", "0", "1") for name in MPI_SIZES)
