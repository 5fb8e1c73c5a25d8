"""A second optimizer for some matrices, through DeepSpeed, and on from a checkpoint with its state."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import driver, questions
from tests.distributed.heavy_ball import HeavyBallOwner
from tests.harness import run_distributed

AT = 5
FIRST_LAYER = 2  # the first of two stages owns none of its matrices
TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"zero_stage": 0}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2, "sequence": True, "zero_stage": 1}),
    "data 2, ZeRO-2": (2, {"zero_stage": 2, "data": 2}),
    "data 2, ZeRO-3": (2, {"zero_stage": 3, "data": 2}),
}


def is_heavy(name: str) -> bool:
    return name in {f"layers.{layer}.ffn.output.weight" for layer in range(FIRST_LAYER, driver.LAYERS)}


FULL = ("one process", "data 2, ZeRO-3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] if name in FULL else []) for name in TOPOLOGIES]
)
def test_follows_the_plain_loop_over_a_save_and_a_resume(tmp_path: Path, name: str) -> None:
    world, parallel = TOPOLOGIES[name]
    case = driver.settings({"preset": "gpt"}, **parallel)
    arguments = (str(tmp_path), case, case, AT, (HeavyBallOwner(FIRST_LAYER),))
    trace = run_distributed(questions.changed_on_the_way, world, *arguments, init=False, timeout=120)[0]
    expected = driver.plain_run({"preset": "gpt"}, heavy=is_heavy)
    assert trace.losses == pytest.approx(expected.losses, rel=1e-5)
    assert trace.norms == pytest.approx(expected.norms, rel=1e-5)
    for key, weight in trace.weights.items():
        assert float((weight - expected.weights[key]).abs().max()) < 2e-5, key
    forgetful = driver.plain_run({"preset": "gpt"}, heavy=is_heavy, forget_at=AT)
    lost = max(float((w - forgetful.weights[key]).abs().max()) for key, w in expected.weights.items())
    assert lost > 1e-3, "its state matters"


def test_bf16_with_fp32_accumulation() -> None:
    case = driver.settings({"preset": "gpt"}, training={"precision": "bf16"}, zero_stage=1)
    owners = (HeavyBallOwner(FIRST_LAYER),)
    trace = run_distributed(driver.engine_runs, 1, [{"case": case, "owners": owners}], init=False, timeout=120)[0][0]
    assert trace.losses == pytest.approx(driver.plain_run({"preset": "gpt"}, heavy=is_heavy).losses, rel=4e-3)
