"""Checkpoints are written beside training: steps do not wait for a disk, but the next save and the end do."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import commands
from tests.distributed.poison import Poison
from tests.harness import run_distributed

EVERY, BESIDE = 4, 2


def run_on_a_disk_that_waits(argv: list[str], go: str) -> int:
    """A command where rank 1 does not write the first checkpoint until step EVERY + BESIDE has been taken."""
    from megaqk.training import saver
    from megaqk.training.trainer import Hook, Step, Trainer

    write, mark = saver.write_rank_file, Path(go)

    def write_late(path: Path, *args: Any) -> Any:
        while os.environ["RANK"] == "1" and not mark.exists():
            time.sleep(0.01)
        return write(path, *args)

    class Free(Hook):
        def step(self, run: Trainer, step: Step) -> None:
            if step.progress.step == EVERY + BESIDE:
                assert not list(Path(argv[1]).with_name("run").glob("checkpoints/step-*[0-9]"))
                mark.touch()

    saver.write_rank_file = write_late
    return commands.run_with(argv, Free())


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(tmp_path, checkpoint={"every": EVERY, "keep": 9}, parallel={"tensor": 2})
    arguments = (["pretrain", str(config)], str(tmp_path / "go"))
    assert run_distributed(run_on_a_disk_that_waits, 2, *arguments, init=False, timeout=100) == [0, 0]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-10", "step-4", "step-8"]
    for path in checkpoints.iterdir():
        Checkpoint(path).verify()


def run_slowly(argv: list[str], seconds: float, *more: Any) -> int:
    from megaqk.training import saver

    write = saver.write_rank_file

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return write(*args)

    saver.write_rank_file = slow
    return commands.run_with(argv, *more)


def test_a_slow_disk_holds_up_the_next_save_and_says_so(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, checkpoint={"every": EVERY, "keep": 9})
    assert run_distributed(run_slowly, 1, ["pretrain", str(config)], 4.0, init=False, timeout=100) == [0]
    said = [
        line for line in capfd.readouterr().out.splitlines() if "for the checkpoint before it to be written" in line
    ]
    assert [line.split()[2] for line in said] == ["8", "10"]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3


def test_the_best_and_every_fourth_are_kept(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    keep = {"every": 1, "keep": 1, "keep_every": 4, "keep_best": 2}
    config = write_config(tmp_path, checkpoint=keep, evaluation={"every": 1, "batches": 1})
    assert run_distributed(commands.run_command, 1, ["pretrain", str(config)], init=False, timeout=100) == [0]
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = {record["step"]: record["valid_loss"] for record in records if "valid_loss" in record}
    best = sorted(losses, key=lambda step: losses[step])[:2]
    assert not {*best} <= {4, 8, 10}, "one is there for its loss alone"
    kept = {int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {4, 8, 10, *best}


def test_what_is_being_written_outlives_the_run(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """The run diverges two steps after a save, while it is written."""
    config = write_config(tmp_path, checkpoint={"every": EVERY}, faults={"skipped_steps": 1}, parallel={"tensor": 2})
    arguments = (["pretrain", str(config)], 3.0, Poison([EVERY + BESIDE]))
    assert run_distributed(run_slowly, 2, *arguments, init=False, timeout=100) == [76, 76]
    Checkpoint(tmp_path / "run" / "checkpoints" / f"step-{EVERY}").verify()
