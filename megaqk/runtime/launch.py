"""What a launcher tells a process of its place in the job: the one reader of `RANK` and its kin."""

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megaqk.errors import UserError
from megaqk.runtime.mpi import Mpi

OWN_LAUNCHER = "megaqk --processes"
"""What starts the processes of one machine, and the id by which they know it."""
UNHEARD = 74
"""With what a rank of it ends that was stopped before it could say so."""
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
        launcher: What started them, in words; none is a process alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    binds_gpus: bool = False
    launcher: str = "none"

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
    """The facts as torchrun, DeepSpeed's launcher, mpirun or Slurm's srun give them; without one it is a world of one.

    Of launchers inside each other the inner one counts, as torchrun in an srun step.

    Raises:
        UserError: If a variable is missing, is no number, or contradicts another.
    """
    reader, names = _reader(environment)
    try:
        launch = reader(environment)
    except KeyError as missing:
        raise UserError(f"{missing.args[0]}: must be set beside {names}") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{names}: must be integers ({error})") from None
    if not 0 <= launch.rank < launch.world_size:
        raise UserError(f"rank = {launch.rank}: must be at least 0 and below the world size, {launch.world_size}")
    if not 0 <= launch.local_rank < launch.local_size <= launch.world_size:
        raise UserError(
            f"local rank = {launch.local_rank}: must be at least 0 and below the processes of the machine, "
            f"{launch.local_size}, which must be at most the world size, {launch.world_size}"
        )
    for name, value in (("RANK", launch.rank), ("WORLD_SIZE", launch.world_size)):
        if environment.get(name, str(value)) != str(value):
            raise UserError(
                f"{name} = {environment[name]}: contradicts {launch.launcher}, which says {value}; unset it, or use "
                "one launcher"
            )
    return launch


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """The rank of this process as far as its environment tells, to decide who speaks."""
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return 0


def _reader(environment: Mapping[str, str]) -> tuple[Callable[[Mapping[str, str]], Launch], str]:
    """Who can read the facts, and the names of what it reads."""
    by_torch = "TORCHELASTIC_RUN_ID" in environment
    by_deepspeed = "RANK" in environment and "CROSS_SIZE" in environment
    # A batch script has SLURM_PROCID and SLURM_NTASKS too; only what srun started is a task of a step.
    by_srun = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    variables = "RANK, WORLD_SIZE and LOCAL_RANK"
    if by_torch or by_deepspeed:
        return _read_variables, variables
    if started_by_mpi(environment, by_srun=by_srun):
        return _read_mpi, "what mpirun sets"
    if by_srun:
        return _read_srun, "SLURM_STEP_NUM_TASKS, SLURM_PROCID and their like"
    if "RANK" in environment or environment.get("WORLD_SIZE", "1") != "1":
        return _read_variables, variables
    return (lambda _: Launch()), ""


def _read_variables(environment: Mapping[str, str]) -> Launch:
    """The facts as torchrun, DeepSpeed's launcher or a user sets them."""
    rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    local_size = int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", size)))
    launcher = "deepspeed" if "CROSS_SIZE" in environment else "the environment"
    if run := environment.get("TORCHELASTIC_RUN_ID"):
        launcher = OWN_LAUNCHER if run == OWN_LAUNCHER else "torchrun"
    return Launch(rank=rank, world_size=size, local_rank=local, local_size=local_size, launcher=launcher)


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
        launcher="srun",
    )


def _first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: of `gpu[03-05,9],login` it is `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])+", hosts)
    assert first is not None, "a step has a node"
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])


def _read_mpi(environment: Mapping[str, str]) -> Launch:
    """The facts as MPI has them; its ranks tell each other where the first one is."""
    comm = Mpi()
    if str(comm.size) not in (sizes := [environment[name] for name in MPI_SIZES if name in environment]):
        raise UserError(
            f"MPI's launcher started {' or '.join(sizes)} processes, of which mpi4py sees {comm.size}: must be of one "
            "MPI; build mpi4py with the one whose mpirun this is"
        )
    hosts = comm.allgather((socket.gethostname(), _free_port() if comm.rank == 0 else 0))
    address = "127.0.0.1" if len({host for host, _ in hosts}) == 1 else hosts[0][0]
    return Launch(
        rank=comm.rank,
        world_size=comm.size,
        local_rank=comm.local_rank,
        local_size=comm.local_size,
        address=address,
        port=hosts[0][1],
        launcher="mpirun",
    )


def started_by_mpi(environment: Mapping[str, str] = os.environ, *, by_srun: bool = False) -> bool:
    """Whether an MPI launcher started several processes; srun sets MPI's variables too, but for Open MPI's own."""
    names = MPI_SIZES[:1] if by_srun else MPI_SIZES
    return any(environment.get(name, "") not in ("", "0", "1") for name in names)
