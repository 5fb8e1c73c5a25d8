"""A rank that is killed, stopped or stuck ends the whole job, with one line that names it; under the launchers."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megaqk.errors import AGAIN, FAULT

WORLD, VICTIM = 3, 2
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LIMIT = 150


class Job:
    """A run of three processes under `--processes`, as far as its first steps."""

    def __init__(self, folder: Path, write_config: Callable[..., Path], plant: str = "", **training: object) -> None:
        settings = {"steps": 100_000, "global_batch_size": 6, "watchdog": 5, **training}
        config = write_config(folder, training=settings, checkpoint={"every": 0}, schedule={"warmup_steps": 2})
        self.run, self._log = folder / "run", folder / "output"
        # What Python imports by itself in every rank.
        (folder / "sitecustomize.py").write_text(plant)
        variables = {**ENVIRONMENT, "PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[2]}"}
        command = [sys.executable, "-m", "megaqk", "pretrain", str(config), "--processes", str(WORLD)]
        with self._log.open("w") as output:
            self.process = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)
        self.until(lambda: "step 5/" in self.output)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def rank(self, number: int) -> psutil.Process:
        [found] = [p for p in psutil.Process(self.process.pid).children() if p.environ().get("RANK") == str(number)]
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def ended(self) -> "tuple[int, float, list[str]]":
        """Its status, the seconds until then, and the lines that are not records."""
        began = time.monotonic()
        status = self.process.wait(LIMIT)
        lines = [line for line in self.output.splitlines() if not re.match(r"step |megaqk: (0\.|peak)", line)]
        return status, time.monotonic() - began, lines

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in psutil.Process(self.process.pid).children() if self.process.poll() is None else []:
            process.kill()
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("victim", [0, VICTIM])
def test_a_killed_rank_is_named(tmp_path: Path, write_config: Callable[..., Path], victim: int) -> None:
    with Job(tmp_path, write_config) as job:
        job.rank(victim).send_signal(signal.SIGKILL)
        status, seconds, lines = job.ended()
    assert status not in (0, 2, AGAIN)
    assert seconds < 15
    [line] = lines
    assert re.match(rf"megaqk: error: rank {victim} on \S+ is gone: killed, or its machine failed$", line)
    assert f"rank {victim} on" in (job.run / "result.json").read_text()


def test_a_stopped_rank_is_named(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    with Job(tmp_path, write_config) as job:
        ranks = [job.rank(number) for number in range(WORLD)]
        victim = ranks.pop(VICTIM)
        victim.send_signal(signal.SIGSTOP)
        _, alive = psutil.wait_procs(ranks, timeout=60)
        assert not alive
        victim.kill()  # the launcher would, half a minute later
        status, _, lines = job.ended()
    assert status == FAULT
    [line] = lines
    assert re.match(
        rf"megaqk: error: rank {VICTIM} on \S+ does not answer: stopped, or its machine failed; no step", line
    )
    for rank in set(range(WORLD)) - {VICTIM}:
        log = (job.run / "logs" / f"rank{rank}.log").read_text()
        assert "does not answer" in log
        assert re.search(r'trainer\.py", line \d+ in step', log)


STUCK = """
import os, sys, threading, time
def plant():
    while not hasattr(module := sys.modules.get("megaqk.training.trainer"), "Trainer"):
        time.sleep(0.05)
    Trainer = module.Trainer
    real = Trainer.step
    def step(self):
        if self.progress.step == 8:
            stand_still()
        return real(self)
    def stand_still():
        while True:
            time.sleep(1)
    Trainer.step = step
if os.environ.get("RANK") == "1":
    threading.Thread(target=plant, daemon=True).start()
"""


def test_a_rank_that_stands_still_is_told_from_those_that_wait_for_it(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    with Job(tmp_path, write_config, STUCK) as job:
        status, _, lines = job.ended()
    assert status == FAULT
    [line] = lines
    assert line.startswith("megaqk: error: no step has ended for 5 s (training.watchdog): rank 1 at ")
    assert "ranks 0, 2 at " in line
    assert "in stand_still" in (job.run / "logs" / "rank1.log").read_text()


def test_a_second_signal_ends_at_once(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """In the middle of a step that takes longer than anybody waits."""
    with Job(tmp_path, write_config, STUCK, watchdog=None) as job:
        job.until(lambda: "step 8/" in job.output)
        time.sleep(0.5)
        job.process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        job.process.send_signal(signal.SIGINT)
        status, seconds, lines = job.ended()
    assert status == 128 + signal.SIGINT
    assert seconds < 10
    assert lines == []


def test_ranks_that_lost_their_launcher_end(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    with Job(tmp_path, write_config) as job:
        ranks = [job.rank(number) for number in range(WORLD)]
        job.process.kill()
        _, alive = psutil.wait_procs(ranks, timeout=40)
    assert alive == []
    assert "the launcher or rank 0, which keeps it, is gone" in job.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_a_rank_can_heed_it(
    tmp_path: Path, write_config: Callable[..., Path], number: signal.Signals
) -> None:
    """At once after the processes were started, while they import."""
    config = write_config(tmp_path, training={"global_batch_size": 6})
    command = [sys.executable, "-m", "megaqk", "pretrain", str(config), "--processes", str(WORLD)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while len(psutil.Process(process.pid).children()) < WORLD:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    began = time.monotonic()
    output = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == AGAIN
    assert time.monotonic() - began < 15
    assert output == f"megaqk: stopped by {number.name} before the first step; the same command goes on\n"


def test_a_rank_whose_peers_never_come_can_be_stopped(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "megaqk", "pretrain", str(write_config(tmp_path))]
    process = subprocess.Popen(command, env={**ENVIRONMENT, **place}, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT
    while not any(one.laddr.port == port for one in psutil.Process(process.pid).net_connections() if one.laddr):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=15)[1]
    assert process.returncode == AGAIN
    assert output == "megaqk: stopped by SIGTERM before the first step; the same command goes on\n"


def test_what_every_rank_finds_the_first_one_says(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = str(write_config(tmp_path))
    said = []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        for override in ("training.global_batch_size=7", "training.step=7"):
            command = [sys.executable, "-m", "megaqk", "pretrain", config, override]
            done = subprocess.run(command, env={**ENVIRONMENT, **place}, capture_output=True, text=True, timeout=LIMIT)
            assert done.returncode == 2
            said.append(done.stderr.count("megaqk: error: training."))
    assert said == [1, 1, 0, 0]
    # What one process asks is answered, whatever its shell has exported.
    command = [sys.executable, "-m", "megaqk", "check", config, "--world-size", "2", "training.step=7"]
    done = subprocess.run(command, env={**ENVIRONMENT, "RANK": "1"}, capture_output=True, text=True, timeout=LIMIT)
    assert done.stderr.count("megaqk: error: training.") == 1


def test_an_mpi_that_is_not_the_launchers_is_one_line(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    place = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    command = [sys.executable, "-m", "megaqk", "pretrain", str(write_config(tmp_path))]
    done = subprocess.run(command, env={**ENVIRONMENT, **place}, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2
    assert "MPI's launcher started 2 processes, of which mpi4py sees 1: must be of one MPI" in done.stderr


def test_a_refusal_is_one_line(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """One that only the ranks find, and one that is found before there are any."""
    config = write_config(tmp_path, data={"text": str(tmp_path / "missing.jsonl")}, training={"global_batch_size": 6})
    for override, said in (("training.steps=10", "missing.jsonl"), ("parallel.tensor=2", "world size = 3")):
        command = [sys.executable, "-m", "megaqk", "pretrain", str(config), "--processes", str(WORLD), override]
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith("megaqk: error: ")
        assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "0"], "--processes = 0: must be a positive number, or auto for one a GPU"),
        (["--processes", "many"], "--processes = many: must be a positive number, or auto"),
    ],
)
def test_what_no_number_of_processes_is(
    tmp_path: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    from megaqk.cli import main

    assert main(["pretrain", str(write_config(tmp_path)), *words]) == 2
    assert said in capsys.readouterr().err
