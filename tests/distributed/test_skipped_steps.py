"""What becomes of a step whose gradient is not finite, whether or not the step is logged."""

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.harness import run_distributed

STEPS, LOST = 20, 6


class Poison:
    """A hook that makes gradients infinite in some steps; as `megaqk.training.trainer.Hook`, imported in the ranks."""

    def __init__(self, steps: Collection[int]) -> None:
        self._steps = steps

    def start(self, run: Any) -> None:
        for parameter in run.engine.parameters.values():
            if parameter.requires_grad:
                parameter.register_hook(lambda g: g * math.inf if run.progress.step + 1 in self._steps else g)

    def state(self) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        if name in ("step", "record", "saving", "end", "close", "load_state"):
            return lambda *_: None
        raise AttributeError(name)


def outcome(
    folder: Path, write_config: Callable[..., Path], every: int, steps: Collection[int], **sections: Any
) -> tuple[list[int], list[int], dict[str, Any], dict[int, dict[str, Any]]]:
    """Statuses, steps of the checkpoints kept, result, and training records of a run that logs every so many steps."""
    world = 2 if sections["parallel"].get("zero_stage", 1) > 0 else 1
    sections["training"] = {"steps": STEPS, **sections.get("training", {})}
    checkpoint = {"every": LOST, "keep": 9}
    config = write_config(folder, logging={"every": every}, checkpoint=checkpoint, **sections)
    argv = ["pretrain", str(config)]
    statuses = run_distributed(commands.run_with, world, argv, Poison(steps), init=False, timeout=120)
    run = folder / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    saved = sorted(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*"))
    result = json.loads((run / "result.json").read_text())
    return statuses, saved, result, {record["step"]: record for record in records if "loss" in record}


@pytest.mark.parametrize(
    ("precision", "parallel"),
    [
        ("bf16", {"zero_stage": 1}),
        pytest.param("bf16", {"zero_stage": 2}, marks=pytest.mark.full),
        ("bf16", {"zero_stage": 3}),
        pytest.param("bf16", {"pipeline": 2}, marks=pytest.mark.full),
        ("fp32", {"zero_stage": 0}),
        ("fp32", {"zero_stage": 1}),
        pytest.param("fp32", {"zero_stage": 3}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_one_is_skipped_and_changes_nothing(
    tmp_path: Path, write_config: Callable[..., Path], precision: str, parallel: dict[str, Any]
) -> None:
    sections: dict[str, Any] = {"parallel": parallel, "training": {"precision": precision}}
    logged, quiet = (outcome(tmp_path / str(n), write_config, n, {LOST}, **sections) for n in (1, 100))
    for statuses, saved, result, records in (logged, quiet):
        assert set(statuses) == {0}
        # The checkpoint of the skipped step is that of the next one.
        assert saved == [LOST + 1, 12, 18, STEPS]
        assert result["state"] == "finished"
        assert records[STEPS]["loss"] == logged[3][STEPS]["loss"]
    norms = {step: record["grad_norm"] for step, record in logged[3].items()}
    assert [step for step, norm in norms.items() if norm is None] == [LOST]
    assert logged[3][STEPS]["loss"] < logged[3][1]["loss"] - 0.1


@pytest.mark.parametrize("every", [1, 100])
def test_ten_in_a_row_are_divergence(tmp_path: Path, write_config: Callable[..., Path], every: int) -> None:
    sections: dict[str, Any] = {"parallel": {"zero_stage": 1}, "training": {"precision": "bf16"}}
    statuses, saved, result, _ = outcome(tmp_path, write_config, every, range(LOST, STEPS), **sections)
    assert statuses == [76, 76]
    assert saved == []
    assert result["state"] == "diverged"
    assert "the gradients of 10 steps in a row are not finite at step 15" in result["last_words"]
