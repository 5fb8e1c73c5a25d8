import os

import pytest

from megaqk.errors import UserError
from megaqk.runtime.launch import Launch, launched_rank, read_launch, started_by_mpi

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_without_a_launcher_there_is_one_process() -> None:
    assert read_launch({}) == Launch(rank=0, world_size=1, local_rank=0, local_size=1)


def test_what_torchrun_says() -> None:
    said = Launch(rank=3, world_size=4, local_rank=1, local_size=2, launcher="torchrun")
    assert read_launch({**TORCHRUN, "TORCHELASTIC_RUN_ID": "1"}) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE: must be set beside RANK"),
        ({"LOCAL_RANK": "x"}, "must be integers"),
        ({"RANK": "4"}, "rank = 4: must be at least 0 and below the world size, 4"),
        ({"RANK": None}, "RANK: must be set beside RANK, WORLD_SIZE and LOCAL_RANK"),
        ({"LOCAL_RANK": "2"}, "local rank = 2: must be at least 0 and below the processes of the machine, 2"),
        ({"LOCAL_WORLD_SIZE": "8"}, "8, which must be at most the world size, 4"),
    ],
)
def test_half_a_launch_is_refused(change: "dict[str, str | None]", said: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(UserError, match=said):
        read_launch(environment)


# What Slurm 22.05 sets for `srun -N2 -n4` (3 + 1 tasks) and for a batch script with the same request.
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "login,node[01-02]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
}
BATCH = {name: value for name, value in STEP.items() if "STEP" not in name} | {"SLURM_NODEID": "0", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID: must be set beside SLURM_STEP_NUM_TASKS"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID and their like: must be integers"),
        ({"SLURM_NODEID": "7"}, "SLURM_PROCID and their like: must be integers"),
        ({"SLURM_PROCID": "9"}, "rank = 9: must be at least 0 and below the world size, 4"),
    ],
)
def test_half_a_step_is_refused(change: "dict[str, str | None]", said: str) -> None:
    environment = {name: value for name, value in {**STEP, **change}.items() if value is not None}
    with pytest.raises(UserError, match=said):
        read_launch(environment)


def test_tasks_may_have_gpus_of_their_own() -> None:
    assert not read_launch(STEP).binds_gpus
    assert read_launch({**STEP, "SLURM_GPUS_PER_TASK": "1"}).binds_gpus


def test_what_srun_says() -> None:
    launch = read_launch(STEP)
    assert launch == Launch(rank=3, world_size=4, local_size=1, address="node01", port=launch.port, launcher="srun")
    first = read_launch({**STEP, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert (first.rank, first.local_size, first.address, first.port) == (0, 3, launch.address, launch.port)
    assert 1024 < launch.port < 32768
    assert len({read_launch({**STEP, "SLURM_STEP_ID": str(step)}).port for step in range(8)}) == 8


@pytest.mark.parametrize(
    ("tasks", "node", "size"), [("8(x2),4", 0, 8), ("8(x2),4", 1, 8), ("8(x2),4", 2, 4), ("2", 0, 2)]
)
def test_processes_of_a_machine(tasks: str, node: int, size: int) -> None:
    step = {**STEP, "SLURM_STEP_NUM_TASKS": "20", "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}
    assert read_launch(step).local_size == size


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("gpu[003-005,010],login1", "gpu003"),
        ("gpu[7,9-10]", "gpu7"),
        ("login1,gpu[1-2]", "login1"),
        ("rack[1-2]n[3-4].example", "rack1n3.example"),
    ],
)
def test_the_first_rank_is_on_the_first_host(hosts: str, first: str) -> None:
    assert read_launch({**STEP, "SLURM_STEP_NODELIST": hosts}).address == first


@pytest.mark.parametrize(
    "environment",
    [BATCH, {**STEP, "SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}],
    ids=["batch-script", "one-task", "salloc"],
)
def test_what_srun_has_not_started_is_a_world_of_one(environment: "dict[str, str]") -> None:
    assert read_launch(environment) == Launch()


def test_torchrun_below_srun_counts() -> None:
    launched = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "1"}
    assert read_launch({**STEP, **launched}) == read_launch(launched)
    with pytest.raises(UserError, match="WORLD_SIZE = 8: contradicts srun, which says 4; unset it"):
        read_launch({**STEP, **TORCHRUN, "WORLD_SIZE": "8"})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> "dict[str, str]":
    """An environment for `export`, without a launcher."""
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    return environment


def test_a_process_alone_gets_a_rendezvous_of_its_own(environment: "dict[str, str]") -> None:
    Launch().export()
    assert int(environment.pop("MASTER_PORT")) > 0
    expected = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    assert expected.items() <= environment.items()


def test_a_rendezvous_that_was_given_stays(environment: "dict[str, str]") -> None:
    environment["MASTER_ADDR"] = "elsewhere"
    read_launch(STEP).export()
    assert environment["MASTER_ADDR"] == "elsewhere"
    assert environment["MASTER_PORT"] == str(read_launch(STEP).port)


@pytest.mark.parametrize(("size", "several"), [("", False), ("1", False), ("4", True)])
def test_an_mpi_launcher_is_noticed(size: str, several: bool) -> None:
    assert started_by_mpi({"OMPI_COMM_WORLD_SIZE": size}) is several


def test_pmi_beside_a_step_is_that_of_srun() -> None:
    assert read_launch({**STEP, "PMI_SIZE": "4", "PMI_RANK": "3"}).launcher == "srun"


@pytest.mark.parametrize(
    ("environment", "rank"), [({}, 0), (TORCHRUN, 3), (STEP, 3), ({"OMPI_COMM_WORLD_RANK": "2"}, 2)]
)
def test_who_speaks_needs_no_agreement(environment: "dict[str, str]", rank: int) -> None:
    assert launched_rank(environment) == rank
