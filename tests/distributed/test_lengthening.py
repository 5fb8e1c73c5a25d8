"""A finished run that gets more steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.harness import run_distributed


def test_a_finished_run_is_lengthened_without_a_jump_or_not_at_all(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Step 4 of 8 would have the multiplier back at 0.1, and the learning rate up from its end at 0.1 x 3e-3."""
    timing = {"unit": "fraction", "hold": 0.6, "release": "step", "release_end": None}
    config = write_config(tmp_path, training={"steps": 4}, qk_timing=timing, evaluation={"batches": 0})

    def run(*overrides: str) -> tuple[list[int], str]:
        capfd.readouterr()
        argv = ["pretrain", str(config), *overrides]
        return run_distributed(commands.run_command, 1, argv, init=False, timeout=60), capfd.readouterr().out

    def records() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    assert run()[0] == [0]
    before = records()
    statuses, output = run("training.steps=8")
    assert statuses == [2]
    [line] = [line for line in output.splitlines() if line.startswith("megaqk: ")]
    assert "learning rate from 0.0003 to 0.002325 and the multiplier of upper_qk (and 1 more) from 1 to 0.1" in line
    assert records() == before
    assert run("training.steps=6", "schedule.steps=4")[0] == [0]
    for record in records()[4:]:
        assert (record["lr/decay"], record["multiplier/upper_qk"]) == (pytest.approx(3e-4), 1)
    statuses, output = run("training.steps=12", "schedule.accept_jump=true")
    assert statuses == [0]
    assert "changed since: schedule.steps = null (was 4)" in output
    assert records()[6]["multiplier/upper_qk"] == 0.1
    assert records()[6]["lr/decay"] > 1e-3
