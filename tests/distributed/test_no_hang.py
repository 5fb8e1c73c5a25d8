"""Layouts that hang a careless use of DeepSpeed train, save and resume; each under a limit that holds.

A parameter group that some stages lack, stages that hold the embedding or the head alone, unequal stages, and 16-bit
precision, whose optimizer is another one.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.harness import run_distributed

LIMIT = 100
STEPS = 10


@dataclass(frozen=True)
class Case:
    name: str
    world: int
    parallel: dict[str, Any]
    precision: str = "fp32"
    preset: str = "gpt"
    full: bool = False


CASES = [
    # Four layers, the upper two slowed: with (3, 1) the first stage has one of them, with (2, 2) none, with (4, 0)
    # the last has none.
    Case("fp32-group-on-one-stage", 2, {"pipeline": 2, "layers_per_stage": [2, 2]}, full=True),
    Case("fp32-head-only", 2, {"pipeline": 2, "layers_per_stage": [4, 0]}, preset="llama", full=True),
    Case("fp32-embedding-and-head-only", 4, {"pipeline": 4, "layers_per_stage": [0, 3, 1, 0]}),
    Case("bf16-group-on-one-stage", 2, {"pipeline": 2, "layers_per_stage": [3, 1]}, "bf16", full=True),
    Case(
        "bf16-embedding-and-head-only", 4, {"pipeline": 4, "layers_per_stage": [0, 1, 3, 0]}, "bf16", "llama", full=True
    ),
    Case("bf16-one", 1, {"zero_stage": 1}, "bf16", full=True),
    Case("bf16-dp2-zero1", 2, {"zero_stage": 1}, "bf16", full=True),
    Case("bf16-dp2-zero2", 2, {"zero_stage": 2}, "bf16", "llama", full=True),
    Case("bf16-dp2-zero3", 2, {"zero_stage": 3}, "bf16"),
    Case("bf16-tp2-pp2", 4, {"tensor": 2, "pipeline": 2, "sequence": True}, "bf16", "llama"),
    Case("bf16-tp2-dp2-zero3", 4, {"tensor": 2, "zero_stage": 3, "sequence": True}, "bf16", full=True),
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.full] * case.full) for case in CASES]
)
def test_trains_saves_and_resumes(tmp_path: Path, write_config: Callable[..., Path], case: Case) -> None:
    training = {"precision": case.precision}
    config = write_config(
        tmp_path,
        model={"preset": case.preset},
        parallel=case.parallel,
        training=training,
        checkpoint={"every": 5, "keep": 3},
    )
    argv = ["pretrain", str(config)]
    assert run_distributed(commands.run_command, case.world, argv, init=False, timeout=LIMIT) == [0] * case.world
    metrics, checkpoints = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoints"
    first = losses(metrics)
    assert list(first) == list(range(1, STEPS + 1))
    assert first[STEPS] < first[1] - 0.1
    shutil.rmtree(checkpoints / "step-10")
    assert run_distributed(commands.run_command, case.world, argv, init=False, timeout=LIMIT) == [0] * case.world
    assert losses(metrics) == first


def losses(metrics: Path) -> dict[int, float]:
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def test_fp16_without_cuda_is_refused(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, training={"precision": "fp16"})
    argv = ["pretrain", str(config)]
    assert run_distributed(commands.run_command, 1, argv, init=False, timeout=LIMIT) == [2]
    [said] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("megaqk: ")]
    assert "training.precision = fp16" in said
    assert "bf16" in said
