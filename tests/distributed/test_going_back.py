"""A run that goes back behind a fault ends bit for bit as one whose data never had the samples of the fault."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.distributed.poison import Poison
from tests.distributed.test_skipped_steps import told
from tests.harness import DistributedError, run_distributed

BATCH, STEPS = 8, 14
ROW = range(7 * BATCH, 10 * BATCH, BATCH)
"""The first samples of steps 8 to 10."""
SPEED = ("tokens_per_second", "model_flops_per_second", "mfu", "peak_memory_bytes")
BACK = "back from step 10 to step 6, samples 56 to 79 are left out"


def start(
    folder: Path,
    write_config: Callable[..., Path],
    *poison: Poison,
    world: int = 2,
    kill_at: int = 0,
    every: int = 3,
    run: Callable[..., int] = commands.run_with,
    precision: str = "fp32",
    parallel: dict[str, Any] | None = None,
    **faults: Any,
) -> list[int]:
    config = write_config(
        folder,
        parallel=parallel or {},
        model={"dropout": 0.1},
        training={"steps": STEPS, "precision": precision},
        checkpoint={"every": every, "keep": 9},
        faults={"action": "go_back", "skipped_steps": 3, "spike_window": 4, **faults},
    )
    argv = ["pretrain", str(config)]
    if kill_at:
        with pytest.raises(DistributedError):
            run_distributed(commands.run_killed_at_step, world, argv, kill_at, *poison, init=False, timeout=100)
        return []
    return run_distributed(run, world, argv, *poison, init=False, timeout=100)


def log_of(folder: Path) -> str:
    return (folder / "run" / "logs" / "rank0.log").read_text()


def all_of(folder: Path) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, Any]]]:
    """Of a run: every byte of the tensors of its last checkpoint, what that keeps beside them, and all records."""
    files = {path.name: path.read_bytes() for path in (folder / "run" / "checkpoints" / f"step-{STEPS}").iterdir()}
    manifest = json.loads(files.pop("manifest.json"))
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    lasting = [{name: value for name, value in record.items() if name not in SPEED} for record in records]
    return files, {part: manifest[part] for part in ("progress", "state")}, lasting


def assert_same_end(back: Path, straight: Path) -> None:
    ours, theirs = all_of(back), all_of(straight)
    assert ours == theirs
    assert sum(map(len, ours[0].values())) > 100_000
    assert [record["step"] for record in ours[2] if "loss" in record] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("precision", "parallel"),
    [
        ("fp32", {"zero_stage": 1}),
        *(pytest.param("fp32", {"zero_stage": stage}, marks=pytest.mark.full) for stage in (0, 2, 3)),
        *(pytest.param("bf16", {"zero_stage": stage}, marks=pytest.mark.full) for stage in (1, 2, 3)),
        *(pytest.param(name, {"pipeline": 2}, marks=pytest.mark.full) for name in ("fp32", "bf16")),
        pytest.param("fp32", {"tensor": 2}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_back_behind_skipped_steps(
    tmp_path: Path, write_config: Callable[..., Path], precision: str, parallel: dict[str, Any]
) -> None:
    """One rank loses three gradients in a row; the run is killed with a checkpoint past them, and started again."""
    back, straight = tmp_path / "back", tmp_path / "straight"
    of: dict[str, Any] = {"precision": precision, "parallel": parallel}
    start(back, write_config, Poison(samples=ROW, rank=1), kill_at=13, **of)
    said = log_of(back)
    assert "no finite gradient in steps 8 to 10: " + BACK in said
    assert said.count(" skipped: ") == 3
    # It would meet the fault again if its checkpoint had not kept what is left out.
    assert start(back, write_config, Poison(samples=ROW, rank=1), **of) == [0, 0]
    assert log_of(back).count(" skipped: ") == 3
    assert start(straight, write_config, Poison(left_out=[(ROW[0], ROW[-1] + BATCH)]), **of) == [0, 0]
    assert_same_end(back, straight)


@pytest.mark.parametrize("action", ["log", "stop", "go_back"])
def test_a_spike(tmp_path: Path, write_config: Callable[..., Path], action: str) -> None:
    """The gradient of step 9 is a thousand times too large, and clipped; it is seen before a checkpoint of step 9."""
    folder, straight = tmp_path / action, tmp_path / "straight"
    spike = Poison(samples=[8 * BATCH], factor=1e3)
    if action == "log":
        # Mean and deviation go on: three steps after a start would be too few for a verdict.
        start(folder, write_config, spike, world=1, spike_action=action, kill_at=8)
    statuses = start(folder, write_config, spike, world=1, spike_action=action)
    [line] = [line for line in log_of(folder).splitlines() if " is a spike" in line and ": back from" not in line][:1]
    assert "step 9: gradient norm " in line
    assert "mean" in line
    assert "deviation" in line
    saved = {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    if action == "log":
        assert (statuses, "step-9" in saved) == ([0], True)
    elif action == "stop":
        assert (statuses, saved) == ([76], {"step-3", "step-6"})
    else:
        assert statuses == [0]
        assert "in step 9: back from step 9 to step 6, samples 64 to 71 are left out" in log_of(folder)
        assert start(straight, write_config, Poison(left_out=[(64, 72)]), world=1, spike_action=action) == [0]
        assert_same_end(folder, straight)


def run_losing_losses(argv: list[str], poison: Poison) -> int:
    """The loss is infinite where gradients would be poisoned, and its gradient as it should be."""
    from megaqk.model import decoder

    exact = decoder.vocab_parallel_cross_entropy
    decoder.vocab_parallel_cross_entropy = lambda *a, **k: exact(*a, **k) + (math.inf if poison.now else 0.0)
    return commands.run_with(argv, poison)


def test_a_loss_that_is_lost_in_the_last_step(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """No checkpoint is written of what cannot be seen to be well: that one step is fault enough."""
    poison = Poison(samples=[13 * BATCH], factor=1.0)
    assert start(tmp_path, write_config, poison, world=1, run=run_losing_losses) == [0]
    assert "step 14 skipped: its loss is not finite" in log_of(tmp_path)
    said = "no finite gradient in step 14: back from step 14 to step 12, samples 104 to 111 are left out"
    assert said in log_of(tmp_path)
    assert told(tmp_path / "run")[2][STEPS]["skipped_steps"] == 0


def run_asked_to_stop(argv: list[str], poison: Poison) -> int:
    from megaqk.training.trainer import Hook, Step, Trainer

    class Asker(Hook):
        def step(self, run: Trainer, step: Step) -> None:
            if step.progress.step == 9:
                signal.raise_signal(signal.SIGTERM)

    return commands.run_with(argv, poison, Asker())


def test_a_stop_that_comes_with_a_fault(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """The checkpoint that the run has gone back to is what it stops with."""
    assert start(tmp_path, write_config, Poison(samples=ROW), world=1, run=run_asked_to_stop) == [75]
    assert BACK in log_of(tmp_path)
    assert "stopped by SIGTERM after step 6, which is saved" in (tmp_path / "run" / "result.json").read_text()
    assert start(tmp_path, write_config, Poison(samples=ROW), world=1) == [0]
    assert log_of(tmp_path).count(BACK) == 2
    speeds = [record["tokens_per_second"] for record in told(tmp_path / "run")[2].values()]
    assert len(speeds) == STEPS
    assert min(speeds) > 0


def test_a_checkpoint_that_fails_twice_is_set_aside(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """Every step from the seventh on is lost, with whatever samples; the attempts are not counted anew at step 6."""
    assert start(tmp_path, write_config, Poison(steps=range(7, 99)), world=1) == [76]
    goals = [line.split("to step ")[1].split(",")[0] for line in log_of(tmp_path).splitlines() if ": back from" in line]
    assert goals == ["6", "6", "3"]
    assert "having gone back 3 times without a new checkpoint: training diverged" in log_of(tmp_path)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-3", "step-6", "step-6.aside"]


def test_nowhere_to_go_back_to(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    assert start(tmp_path, write_config, Poison(samples=ROW), world=1, every=0) == [76]
    assert "no finite gradient in steps 8 to 10, and no checkpoint before it to go back to: training" in log_of(
        tmp_path
    )
