"""A hook of a user's own: it sees every step, and goes on where a resumed run does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.harness import DistributedError, run_distributed


def run_counting(argv: list[str], folder: str, die_at: int = 0) -> int:
    from megaqk.training.trainer import Hook, Step, Trainer

    class RateLog(Hook):
        """Keeps the sum of the learning rates of every step, as an example of something recorded each step."""

        def __init__(self) -> None:
            self.rates: list[float] = []

        def step(self, run: Trainer, step: Step) -> None:
            self.rates.append(step.rates[0].lr)

        def state(self) -> dict[str, Any]:
            return {"rates": self.rates}

        def load_state(self, state: dict[str, Any]) -> None:
            self.rates = state.get("rates", [])

        def end(self, run: Trainer) -> None:
            (Path(folder) / f"rates{run.world.rank}.json").write_text(json.dumps(self.rates))

    if die_at:
        commands.run_killed_at_step(argv, die_at, RateLog())
    return commands.run_with(argv, RateLog())


def test_a_hook_records_each_step_and_survives_a_resume(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    whole, broken = (write_config(tmp_path / name, parallel={"pipeline": 2}) for name in ("whole", "broken"))
    args = ["pretrain", str(whole)], str(tmp_path / "whole")
    assert run_distributed(run_counting, 2, *args, init=False, timeout=100) == [0, 0]
    args = ["pretrain", str(broken)], str(tmp_path / "broken")
    with pytest.raises(DistributedError):
        run_distributed(run_counting, 2, *args, 5, init=False, timeout=100)
    assert run_distributed(run_counting, 2, *args, init=False, timeout=100) == [0, 0]
    rates = [
        json.loads((tmp_path / name / f"rates{rank}.json").read_text())
        for name in ("whole", "broken")
        for rank in range(2)
    ]
    assert len(rates[0]) == 10
    assert rates == [rates[0]] * 4


def test_result_json(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(tmp_path, parallel={"tensor": 2})
    argv = ["pretrain", str(config)]
    assert run_distributed(commands.run_command, 2, argv, init=False, timeout=100) == [0, 0]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["state"] == "finished"
    assert (result["step"], result["steps"], result["tokens"]) == (10, 10, 1280)
    assert result["loss"] == [record["loss"] for record in records if "loss" in record][-1]
    assert result["valid_loss"] == [record["valid_loss"] for record in records if "valid_loss" in record][-1]
    assert result["topology"] == {"pipeline": 1, "data": 1, "tensor": 2, "zero_stage": 1}
    assert set(result["versions"]) == {"megaqk", "torch", "deepspeed", "python"}
    assert result["seconds"] > 0
    # A start that is refused says nothing of a run that is finished, and one that finds nothing to do keeps it so.
    assert run_distributed(commands.run_command, 2, [*argv, "model.num_layers=2"], init=False, timeout=100) == [2, 2]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert run_distributed(commands.run_command, 2, argv, init=False, timeout=100) == [0, 0]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    (tmp_path / "run" / "result.json").write_text(json.dumps({**result, "state": "running"}))
    assert run_distributed(commands.run_command, 2, argv, init=False, timeout=100) == [0, 0]
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [again[key] for key in ("state", "step", "loss")] == ["finished", 10, result["loss"]]
    # It says what ended a run that failed, and where: the last record is newer than the last checkpoint.
    overrides = [
        "training.steps=20",
        "schedule.steps=10",
        "optimizer.lr=1e30",
        "optimizer.grad_clip=0",
        "checkpoint.every=0",
    ]
    assert run_distributed(commands.run_command, 2, [*argv, *overrides], init=False, timeout=100) == [76, 76]
    failed = json.loads((tmp_path / "run" / "result.json").read_text())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = [record for record in map(json.loads, lines) if "loss" in record][-1]
    assert failed["state"] == "diverged"
    assert "training diverged" in failed["last_words"]
    assert failed["step"] == last["step"] > 10
    assert failed["loss"] == last["loss"]
    assert failed["versions"] == result["versions"]


def test_a_disk_that_takes_nothing_more_is_still_said(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """The last words of a run have no room either."""
    argv = ["pretrain", str(write_config(tmp_path))]
    assert run_distributed(run_on_a_full_disk, 1, *argv, init=False, timeout=100) == [2]
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("megaqk: error: ")]
    assert "step-3: could not be saved" in line


def run_on_a_full_disk(*argv: str) -> int:
    import resource

    from megaqk.training.saver import CheckpointSaver

    begin = CheckpointSaver.begin

    def fill(self: CheckpointSaver, manifest: dict[str, Any]) -> None:
        # Neither its share of a checkpoint nor the last words can be written; what is printed can.
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        result = self.store.folder.with_name("result.json")
        result.unlink()
        result.mkdir()
        begin(self, manifest)

    CheckpointSaver.begin = fill  # type: ignore[method-assign]
    return commands.run_command(argv)


def test_hooks_measure_for_multipliers(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """The way of a signal: from a hook, through the step, to the multiplier of a group."""
    argv = ["pretrain", str(write_config(tmp_path))]
    assert run_distributed(run_with_signal, 1, argv, init=False, timeout=100) == [0]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [record["multiplier/upper_qk"] for record in records if "loss" in record]
    assert seen == [1.0] + [1 / (step + 1) for step in range(1, 10)]


def run_with_signal(argv: list[str]) -> int:
    from megaqk.optim.multipliers import Moment
    from megaqk.optim.timing import Timing
    from megaqk.training.trainer import Hook, Step, Trainer

    class Measure(Hook):
        def step(self, run: Trainer, step: Step) -> None:
            run.signals["measured"] = 1 / (step.progress.step + 1)

    def at(self: Timing, moment: Moment) -> float:
        return moment.signals.get("measured", 1.0)

    Timing.at = at  # type: ignore[method-assign]
    return commands.run_with(argv, Measure())
