import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.harness import DistributedError, run_distributed, run_torchrun


class CaseError(Exception):
    """An exception that pickles and cannot be unpickled."""

    def __init__(self, first: str, second: str):
        super().__init__(first)


def sum_of_ranks(factor: int) -> tuple[int, torch.Tensor, int]:
    value = torch.tensor([float(dist.get_rank() * factor)])
    dist.all_reduce(value)
    return dist.get_rank(), value, torch.get_num_threads()


def environment(name: str) -> tuple[bool, str, str]:
    return dist.is_initialized(), os.environ["LOCAL_RANK"], os.environ[name]


def raise_on(rank: int, unpicklable: bool) -> None:
    print("about to work")
    if dist.get_rank() == rank:
        raise CaseError("a", "b") if unpicklable else KeyError("the culprit")
    dist.barrier()


def never_join(rank: int) -> None:
    if dist.get_rank() == rank:
        wait_elsewhere()
    dist.barrier()


def wait_elsewhere() -> None:
    time.sleep(600)


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def start_a_child_and_hang(pid_file: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(str(child.pid))
    child.wait()


@pytest.mark.parametrize("fork", [True, False])
def test_results_come_back_by_rank(fork: bool) -> None:
    results = run_distributed(sum_of_ranks, 3, 10, fork=fork, timeout=120)
    assert results == [(rank, torch.tensor([30.0]), 1) for rank in range(3)]


def test_a_case_costs_little_once_the_server_runs() -> None:
    run_distributed(sum_of_ranks, 2, 1)
    began = time.monotonic()
    run_distributed(sum_of_ranks, 2, 1)
    # Importing torch and DeepSpeed alone takes longer than this.
    assert time.monotonic() - began < 3.0


def test_the_environment_is_that_of_the_case() -> None:
    results = run_distributed(environment, 2, "MEGAQK_CASE", init=False, env={"MEGAQK_CASE": "one"})
    assert results == [(False, "0", "one"), (False, "1", "one")]
    assert "MEGAQK_CASE" not in os.environ
    with pytest.raises(DistributedError, match="MEGAQK_CASE"):
        run_distributed(environment, 1, "MEGAQK_CASE")


def test_the_rank_that_raised_is_named_with_its_traceback() -> None:
    with pytest.raises(DistributedError) as failure:
        run_distributed(raise_on, 3, 1, False)
    assert failure.value.rank == 1
    assert isinstance(failure.value.__cause__, KeyError)
    text = str(failure.value)
    assert text.startswith("rank 1 of 3 failed: KeyError: 'the culprit'")
    assert 'raise CaseError("a", "b") if unpicklable else KeyError("the culprit")' in text
    assert "about to work" in text


def test_an_exception_that_does_not_travel_is_still_shown() -> None:
    with pytest.raises(DistributedError, match=r"rank 0 of 1 failed: .*CaseError: a"):
        run_distributed(raise_on, 1, 0, True)


def test_a_hang_fails_in_time_and_says_who_does_what() -> None:
    began = time.monotonic()
    with pytest.raises(DistributedError) as failure:
        run_distributed(never_join, 2, 1, timeout=8.0)
    assert time.monotonic() - began < 25.0
    text = str(failure.value)
    assert "no result after 8 s from rank 0, 1 of 2" in text
    assert "in wait_elsewhere" in text
    assert "in barrier" in text
    assert run_distributed(sum_of_ranks, 2, 1)[0][0] == 0


def test_a_killed_rank_is_reported() -> None:
    with pytest.raises(DistributedError, match=r"rank 1 of 2 failed: it died without a word, exit code -9"):
        run_distributed(die_on, 2, 1)


def test_what_a_rank_started_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(DistributedError, match="no result after"):
        run_distributed(start_a_child_and_hang, 1, str(pid_file), timeout=8.0)
    assert ended(int(pid_file.read_text()))


TEST_PROCESS = """
import sys
from tests.distributed.test_harness import start_a_child_and_hang
from tests.harness import run_distributed
run_distributed(start_a_child_and_hang, 1, sys.argv[1])
"""


def test_a_rank_ends_with_a_killed_test_process(tmp_path: Path) -> None:
    """As when a time limit of pytest's, or a user, ends the test process without any clean-up."""
    pid_file = tmp_path / "pid"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", TEST_PROCESS, str(pid_file)], cwd=root)
    deadline = time.monotonic() + 30.0
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(pid_file.read_text())
    rank = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    process.kill()
    process.wait()
    assert ended(rank)
    os.kill(child, signal.SIGKILL)


def ended(pid: int, limit: float = 5.0) -> bool:
    """Whether a process is gone, or a zombie that nobody here can reap."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


RANK_PROGRAM = """
import os, sys, time
open(sys.argv[2] + os.environ["RANK"], "w").write(str(os.getpid()))
def stuck_here():
    time.sleep(600)
# One string with its newline is one write, which the other rank's cannot cut in two.
sys.stdout.write("hello from %s\\n" % os.environ["RANK"])
sys.stdout.flush()
if sys.argv[1] == "hang":
    stuck_here()
sys.exit(int(sys.argv[1]))
"""


def torchrun(tmp_path: Path, action: str, **options: float | bool) -> "subprocess.CompletedProcess[str]":
    program = tmp_path / "program.py"
    program.write_text(RANK_PROGRAM)
    return run_torchrun([str(program), action, str(tmp_path / "pid")], 2, **options)  # type: ignore[arg-type]


def test_torchrun_returns_what_the_ranks_print(tmp_path: Path) -> None:
    run = torchrun(tmp_path, "0")
    assert run.returncode == 0
    assert {"hello from 0", "hello from 1"} <= set(run.stdout.splitlines())


def test_a_failing_torchrun_fails_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DistributedError, match="exit status 1"):
        torchrun(tmp_path, "3")
    assert torchrun(tmp_path, "3", check=False).returncode == 1


def test_a_hanging_torchrun_shows_its_stacks_and_leaves_nobody(tmp_path: Path) -> None:
    with pytest.raises(DistributedError) as failure:
        torchrun(tmp_path, "hang", timeout=15.0)
    assert "still running after 15 s" in str(failure.value)
    assert str(failure.value).count("in stuck_here") == 2
    assert all(ended(int((tmp_path / f"pid{rank}").read_text())) for rank in range(2))
