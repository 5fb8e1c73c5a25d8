"""Two processes under each launcher of one machine train the same; srun is in tests/cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BESIDE = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
MODULE = [sys.executable, "-m", "megaqk", "pretrain"]
LAUNCHERS = {
    "torchrun": [str(BESIDE / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "megaqk", "pretrain"],
    "mpirun": [str(BESIDE / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "2", *MODULE],
    "deepspeed": [str(BESIDE / "deepspeed"), "--num_gpus", "2", "--module", "megaqk", "pretrain"],
    "megaqk --processes": [*MODULE, "--processes", "2"],
}


def run(command: "list[str]") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> "dict[str, list[float]]":
    losses = {}
    for name, launcher in LAUNCHERS.items():
        folder = tmp_path_factory.mktemp("run")
        result = run([*launcher, str(write_config(folder, parallel={"tensor": 2})), "training.steps=5"])
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"device cpu, launcher {name}\n" in result.stderr
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    return losses


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_gives_the_same_losses(runs: "dict[str, list[float]]", name: str) -> None:
    assert len(runs[name]) == 5
    assert runs[name] == runs["torchrun"]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("torchrun", ["--processes", "2"], "--processes = 2: must be left out, since torchrun starts the processes"),
        ("mpirun", ["training.step=5"], "training.step"),
    ],
)
def test_a_refusal_under_a_launcher_is_one_line_of_ours(
    tmp_path: Path, write_config: Callable[..., Path], name: str, words: "list[str]", said: str
) -> None:
    result = run([*LAUNCHERS[name], str(write_config(tmp_path)), *words])
    assert result.returncode in (1, 2)  # torchrun's own is 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("megaqk: error: ")]
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_rank_that_an_argument_contradicts_is_refused(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    result = run([sys.executable, "-m", "megaqk", "--local_rank=1", "pretrain", str(write_config(tmp_path))])
    assert result.returncode == 2
    assert result.stderr == "megaqk: error: --local_rank = 1: must be LOCAL_RANK = 0\n"


PROGRAM = """
import os, signal, sys
from megaqk.training import hooks
from megaqk.training.trainer import Hook

class Killer(Hook):
    def step(self, run, step):
        if run.world.rank == 1 and step.progress.step == 8 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

defaults = hooks.default_hooks
hooks.default_hooks = lambda: [*defaults(), Killer()]
from megaqk.cli import main
sys.exit(main())
"""


def test_torchrun_starts_ranks_again(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    torchrun = [str(BESIDE / "torchrun"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    result = run([*torchrun, str(program), "pretrain", str(write_config(tmp_path))])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rank 1 on " in result.stderr
    assert "resumed after step " in result.stderr
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 11))
