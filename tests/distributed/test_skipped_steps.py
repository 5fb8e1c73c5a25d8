"""What becomes of a step whose gradient is not finite, whether or not the step is logged."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.distributed.poison import Poison
from tests.harness import run_distributed

STEPS, LOST = 20, 6


def outcome(
    folder: Path, write_config: Callable[..., Path], every: int, steps: Collection[int], **sections: Any
) -> tuple[list[int], list[int], dict[str, Any], dict[int, dict[str, Any]]]:
    """Statuses, steps of the checkpoints kept, result, and training records of a run that logs every so many steps."""
    world = 2 if sections["parallel"].get("zero_stage", 1) > 0 else 1
    sections["training"] = {"steps": STEPS, **sections.get("training", {})}
    checkpoint = {"every": LOST, "keep": 9}
    config = write_config(folder, logging={"every": every}, checkpoint=checkpoint, **sections)
    run = run_fp16 if sections["training"].get("precision") == "fp16" else commands.run_with
    statuses = run_distributed(run, world, ["pretrain", str(config)], Poison(steps), init=False, timeout=120)
    return statuses, *told(folder / "run")


def told(run: Path) -> tuple[list[int], dict[str, Any], dict[int, dict[str, Any]]]:
    """Steps of the checkpoints, result and training records of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    saved = sorted(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*[0-9]"))
    result = json.loads((run / "result.json").read_text())
    return saved, result, {record["step"]: record for record in records if "loss" in record}


def run_fp16(argv: list[str], *more: Any) -> int:
    """The command in fp16 on the CPU: we and DeepSpeed refuse it for want of hardware, slow products serve here."""
    from deepspeed.accelerator import get_accelerator

    from megaqk.training import checks

    checks.check_device = lambda *_: None
    type(get_accelerator()).is_fp16_supported = lambda _: True
    return commands.run_with(argv, *more)


@pytest.mark.parametrize(
    ("precision", "parallel"),
    [
        ("bf16", {"zero_stage": 1}),
        pytest.param("bf16", {"zero_stage": 2}, marks=pytest.mark.full),
        pytest.param("bf16", {"zero_stage": 3}, marks=pytest.mark.full),
        pytest.param("bf16", {"pipeline": 2}, marks=pytest.mark.full),
        ("fp32", {"zero_stage": 0}),
        pytest.param("fp32", {"zero_stage": 1}, marks=pytest.mark.full),
        pytest.param("fp32", {"zero_stage": 3}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_one_is_skipped_and_counted(
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
        assert records[STEPS]["skipped_steps"] == 1
    norms = {step: record["grad_norm"] for step, record in logged[3].items()}
    assert [step for step, norm in norms.items() if norm is None] == [LOST]
    assert logged[3][LOST - 1]["skipped_steps"] == 0
    assert logged[3][STEPS]["loss"] < logged[3][1]["loss"] - 0.1
    said = (tmp_path / "1" / "run" / "logs" / "rank0.log").read_text()
    assert f"step {LOST} skipped: its gradient is not finite" in said


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 100])
def test_ten_in_a_row_are_divergence(tmp_path: Path, write_config: Callable[..., Path], every: int) -> None:
    sections: dict[str, Any] = {"parallel": {"zero_stage": 1}, "training": {"precision": "bf16"}}
    statuses, saved, result, _ = outcome(tmp_path, write_config, every, range(LOST, STEPS), **sections)
    assert statuses == [76, 76]
    assert saved == []
    assert result["state"] == "diverged"
    assert "no finite gradient in steps 6 to 15: training diverged" in result["last_words"]


def test_fp16_may_look_long_for_its_scale(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """More than ten steps overflow; the schedule and the multiplier go on with each, as functions of the step."""
    sections: dict[str, Any] = {"parallel": {"zero_stage": 1}, "deepspeed": {"initial_scale_power": 32}}
    (statuses, *_, full), (_, *_, half) = (
        outcome(tmp_path / precision, write_config, 1, (), training={"precision": precision}, **sections)
        for precision in ("fp32", "fp16")
    )
    assert statuses == [0, 0]
    counts = [half[step]["skipped_steps"] for step in range(1, STEPS + 1)]
    print(counts)
    assert counts[:11] == list(range(1, 12))
    assert counts[-1] < STEPS - 1
    for name in full[1]:
        if name.startswith(("lr/", "multiplier/")):
            assert [half[step][name] for step in half] == [full[step][name] for step in full]
    assert [half[step]["tokens"] for step in half] == [full[step]["tokens"] for step in full]


def test_fp16_diverges_where_no_scale_serves(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """DeepSpeed would raise; from the smallest scale on, steps count as in any precision."""
    sections: dict[str, Any] = {"parallel": {"zero_stage": 1}, "deepspeed": {"initial_scale_power": 3}}
    training = {"precision": "fp16"}
    statuses, saved, result, _ = outcome(tmp_path, write_config, 100, range(99), training=training, **sections)
    assert statuses == [76, 76]
    assert saved == []
    # The scale is 8, 8 once more, 4 and 2; when it has fallen to 1 nothing is left but to count.
    assert "no finite gradient in steps 4 to 13:" in result["last_words"]
