"""A run that is killed and started again ends bit for bit as one that was not; in fp32 on CPU."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import commands
from tests.harness import DistributedError, run_distributed, run_torchrun

STEPS, EVERY = 10, 3
SPEED = ("tokens_per_second", "model_flops_per_second", "mfu", "peak_memory_bytes")
LIMIT = 120

TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"model": {"dropout": 0.1, "attention_dropout": 0.1}}),
    "tp2-pp2-zero1": (
        4,
        {"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}, "model": {"dropout": 0.1}},
    ),
    "dp2-zero2": (2, {"parallel": {"zero_stage": 2}, "model": {"preset": "llama", "attention_dropout": 0.1}}),
    "dp2-zero3": (2, {"parallel": {"zero_stage": 3}, "model": {"dropout": 0.1}, "training": {"recompute": "full"}}),
}
KILLS: dict[str, Callable[..., int]] = {
    "at-a-step": commands.run_killed_at_step,
    "in-a-save": commands.run_killed_in_save,
    "before-the-rename": commands.run_killed_before_rename,
}


def command(config: Path, *overrides: str) -> list[str]:
    return ["pretrain", str(config), *overrides]


def records(config: Path) -> list[dict[str, Any]]:
    lines = (config.parent / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in SPEED} for line in lines]


def checkpoint(config: Path, step: int) -> dict[str, Any]:
    """Everything in a checkpoint: its tensors, and what the run and its optimizer keep beside them."""
    opened = Checkpoint(config.parent / "run" / "checkpoints" / f"step-{step}")
    kept = {name: opened.manifest[name] for name in ("progress", "state", "data", "identity", "valid_loss")}
    return {**kept, **{name: opened.tensor(name) for name in opened.index.tensors}}


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


def assert_same_end(killed: Path, whole: Path) -> None:
    assert records(killed) == records(whole)
    assert [record["step"] for record in records(whole) if "loss" in record] == list(range(1, STEPS + 1))
    ours, theirs = checkpoint(killed, STEPS), checkpoint(whole, STEPS)
    assert ours
    assert_equal(ours, theirs)
    names = sorted(
        path.name for path in (killed.parent / "run" / "checkpoints").glob("step-*") if path.suffix != ".aside"
    )
    assert names == ["step-10", "step-9"]  # keep = 2, and nothing partial is left


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> Callable[[str], Path]:
    """The configuration file of an uninterrupted run, by topology; it runs once."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            world, sections = TOPOLOGIES[name]
            config = write_config(tmp_path_factory.mktemp(name), **sections)
            assert (
                run_distributed(commands.run_command, world, command(config), init=False, timeout=LIMIT) == [0] * world
            )
            done[name] = config
        return done[name]

    return run


@pytest.fixture
def finished(tmp_path: Path, whole: Callable[[str], Path], write_config: Callable[..., Path]) -> Path:
    """The configuration of a finished run of one process, to be damaged."""
    original = whole("one")
    config = write_config(tmp_path, **TOPOLOGIES["one"][1])
    shutil.copytree(original.parent / "run", tmp_path / "run")
    return config


@pytest.mark.parametrize(
    ("name", "kill", "step"),
    [
        ("one", "at-a-step", 2),  # before the first checkpoint
        pytest.param("one", "at-a-step", 8, marks=pytest.mark.full),
        ("one", "before-the-rename", 9),
        pytest.param("tp2-pp2-zero1", "in-a-save", 6, marks=pytest.mark.full),
        pytest.param("tp2-pp2-zero1", "at-a-step", 5, marks=pytest.mark.full),
        pytest.param("dp2-zero2", "at-a-step", 5, marks=pytest.mark.full),
        pytest.param("dp2-zero2", "in-a-save", 9, marks=pytest.mark.full),
        ("dp2-zero3", "in-a-save", 6),
        pytest.param("dp2-zero3", "at-a-step", 7, marks=pytest.mark.full),
    ],
)
def test_killed_and_run_again(
    tmp_path: Path,
    whole: Callable[[str], Path],
    write_config: Callable[..., Path],
    name: str,
    kill: str,
    step: int,
) -> None:
    world, sections = TOPOLOGIES[name]
    config = write_config(tmp_path, **sections)
    with pytest.raises(DistributedError, match="died without a word"):
        run_distributed(KILLS[kill], world, command(config), step, init=False, timeout=LIMIT)
    leftovers = [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.partial")]
    # At a step the save before it may be under way still.
    assert kill == "at-a-step" or leftovers == [f"step-{step}.partial"]
    assert run_distributed(commands.run_command, world, command(config), init=False, timeout=LIMIT) == [0] * world
    assert_same_end(config, whole(name))


def kill_tree(process: "subprocess.Popen[str]") -> None:
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.send_signal(signal.SIGKILL)


def kill_from_outside(arguments: list[str], metrics: Path, step: int) -> None:
    """Start a command line and kill all its processes once `step` is on record."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *arguments], env=environment, text=True)
    try:
        deadline = time.monotonic() + LIMIT
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill_tree(process)
    finally:
        process.kill()
        process.wait()


@pytest.mark.full
def test_command_line_of_one_process_killed_from_outside(
    tmp_path: Path, whole: Callable[[str], Path], write_config: Callable[..., Path]
) -> None:
    config = write_config(tmp_path, **TOPOLOGIES["one"][1])
    arguments = ["-m", "megaqk", *command(config)]
    kill_from_outside(arguments, tmp_path / "run" / "metrics.jsonl", 4)
    subprocess.run([sys.executable, *arguments], check=True, timeout=LIMIT)
    assert_same_end(config, whole("one"))


def test_torchrun_killed_from_outside(
    tmp_path: Path, whole: Callable[[str], Path], write_config: Callable[..., Path]
) -> None:
    world, sections = TOPOLOGIES["tp2-pp2-zero1"]
    config = write_config(tmp_path, **sections)
    arguments = ["-m", "megaqk", *command(config)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    kill_from_outside([*launcher, *arguments], tmp_path / "run" / "metrics.jsonl", 5)
    result = run_torchrun(arguments, world, timeout=LIMIT)
    assert "resumed after step 3" in result.stdout
    assert_same_end(config, whole("tp2-pp2-zero1"))


def rerun(config: Path, capfd: pytest.CaptureFixture[str], *overrides: str, world: int = 1) -> tuple[list[int], str]:
    """Run the command again in the harness: the statuses, and what the ranks printed."""
    capfd.readouterr()
    statuses = run_distributed(commands.run_command, world, command(config, *overrides), init=False, timeout=LIMIT)
    return statuses, capfd.readouterr().out


def lines_of_ours(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("megaqk: ")]


def test_a_finished_run_says_so(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = records(finished)
    statuses, output = rerun(finished, capfd)
    assert statuses == [0]
    assert f"at step {STEPS} of {STEPS} already" in output
    assert records(finished) == before


def test_a_damaged_newest_checkpoint_is_passed_over(
    finished: Path, whole: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    newest = finished.parent / "run" / "checkpoints" / f"step-{STEPS}"
    [victim] = newest.glob("*.safetensors")
    with victim.open("r+b") as stream:
        stream.truncate(victim.stat().st_size // 2)
    statuses, output = rerun(finished, capfd)
    assert statuses == [0]
    [said] = [line for line in lines_of_ours(output) if "passed over" in line]
    assert victim.name in said
    assert "bytes" in said
    assert f"kept as step-{STEPS}.aside" in said
    assert "resumed after step 9" in output
    assert (newest.with_name(f"step-{STEPS}.aside") / victim.name).exists()
    assert_same_end(finished, whole("one"))


def test_damage_that_keeps_the_size_is_noticed(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    newest = finished.parent / "run" / "checkpoints" / f"step-{STEPS}"
    [victim] = newest.glob("*.safetensors")
    content = bytearray(victim.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    victim.write_bytes(content)
    statuses, output = rerun(finished, capfd)
    assert statuses == [0]
    assert "is not what was written" in output
    assert "resumed after step 9" in output


def test_a_diverged_model_replaces_no_checkpoint(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The step that blows up still has a finite loss and is saved; the next is not, and keep = 2 holds step 10."""
    overrides = [
        "training.steps=16",
        "schedule.steps=10",
        "optimizer.lr=1e30",
        "optimizer.grad_clip=0",
        "checkpoint.every=1",
    ]
    statuses, output = rerun(finished, capfd, *overrides, "logging.every=100")
    assert statuses == [76]
    assert "training diverged" in output
    assert (finished.parent / "run" / "checkpoints" / f"step-{STEPS}").is_dir()


def test_a_second_job_in_the_same_folder_is_refused(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (finished.parent / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        statuses, output = rerun(finished, capfd)
    assert statuses == [2]
    assert "another job is writing to it" in output


def test_the_token_clock_goes_on_where_the_batch_changes(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Twice the batch from step 10 on: the record's tokens, not steps x batch, decide the multiplier."""
    tokens = records(finished)[-1]["tokens"]
    overrides = ["training.steps=12", "schedule.steps=10", "training.global_batch_size=16", "qk_timing.unit=tokens"]
    overrides += [f"qk_timing.hold={tokens + 1}", "qk_timing.release=step", "qk_timing.release_end=null"]
    statuses, output = rerun(finished, capfd, *overrides)
    assert statuses == [0], output
    by_step = {record["step"]: record for record in records(finished) if "loss" in record}
    multipliers = [by_step[step]["multiplier/upper_qk"] for step in (STEPS + 1, STEPS + 2)]
    assert multipliers[0] < 1
    assert multipliers[1] == 1


def test_no_sample_is_skipped_or_repeated_where_the_batch_changes(finished: Path) -> None:
    samples = 8 * STEPS
    overrides = ["training.steps=12", "schedule.steps=10", "training.global_batch_size=16", "evaluation.batches=0"]
    argv = command(finished, *overrides)
    [(status, first_samples)] = run_distributed(commands.run_and_watch_reads, 1, argv, init=False, timeout=LIMIT)
    assert status == 0
    assert first_samples == [samples, samples + 16]


def test_leftovers_of_a_killed_save_are_removed(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = finished.parent / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step-9", checkpoints / "step-11.partial")
    shutil.rmtree(checkpoints / f"step-{STEPS}")
    assert rerun(finished, capfd)[0] == [0]
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-10", "step-9"]


@pytest.mark.parametrize(
    ("overrides", "world", "named"),
    [
        (["model.num_layers=3"], 1, "model.num_layers"),
        (["model.hidden_size=64"], 1, "model.hidden_size"),
        (["qk_timing.layers={list: [0]}"], 1, "qk_timing"),
        (["qk_timing={enabled: false}"], 1, "qk_timing"),
        (["data.seed=99"], 1, "data.seed"),
        (["data.split=[0.6,0.3,0.1]"], 1, "data.split"),
    ],
)
def test_another_model_is_refused(
    finished: Path, capfd: pytest.CaptureFixture[str], overrides: list[str], world: int, named: str
) -> None:
    before = records(finished)
    statuses, output = rerun(finished, capfd, *overrides, world=world)
    assert statuses == [2] * world
    said = lines_of_ours(output)
    assert len([line for line in said if "(rank" not in line]) == 1
    assert all(line.startswith("megaqk: error: ") and named in line for line in said)
    assert "Traceback" not in output
    assert records(finished) == before


def test_all_damaged_is_no_new_start(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = finished.parent / "run" / "checkpoints"
    before = records(finished)
    for victim in checkpoints.glob("*/*.safetensors"):
        victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    statuses, output = rerun(finished, capfd)
    assert statuses == [2]
    [said] = lines_of_ours(output)
    assert "none of its checkpoints is whole" in said
    assert f"step-{STEPS}/rank-00000.safetensors" in said
    assert records(finished) == before
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-10", "step-9"]


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, ["parallel.zero_stage=3"]),
        (4, ["parallel.tensor=2", "parallel.pipeline=2", "parallel.layers_per_stage=[1,3]"]),
    ],
)
def test_goes_on_with_other_processes(
    finished: Path, capfd: pytest.CaptureFixture[str], world: int, overrides: list[str]
) -> None:
    """No sample is repeated or skipped: the losses are those of one process."""
    shutil.rmtree(finished.parent / "run" / "checkpoints" / f"step-{STEPS}")
    before = records(finished)
    statuses, output = rerun(finished, capfd, *overrides, world=world)
    assert statuses == [0] * world
    assert "resumed after step 9" in output
    assert [record["step"] for record in records(finished)] == [record["step"] for record in before]
    # Tensor-parallel ranks draw masks of their own for what each has of attention.
    close = 1e-6 if world == 2 else 1e-2
    assert records(finished)[-2]["loss"] == pytest.approx(before[-2]["loss"], rel=close)
