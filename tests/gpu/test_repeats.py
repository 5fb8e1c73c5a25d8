"""The same steps again give the same numbers: after a resume, and with activations computed twice."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import devices
from tests.distributed import driver, questions
from tests.distributed.driver import STEPS, Trace


def in_turn(calls: list[tuple[Any, ...]]) -> list[Any]:
    """What functions of the driver return."""
    return [func(*args) for func, *args in calls]


def assert_same(a: Trace, b: Trace) -> None:
    assert a.losses == b.losses
    assert a.norms == b.norms
    assert a.weights.keys() == b.weights.keys()
    assert [name for name in a.weights if not torch.equal(a.weights[name], b.weights[name])] == []


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.skipif(not devices.ON_CUDA, reason="CUDA"))]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_processes_get_the_same(precision: str, compiled: bool) -> None:
    training = {"precision": precision, "deterministic": True, "compile": compiled}
    case = devices.settings({"preset": "gpt"}, training=training, zero_stage=1)
    [(first,), (second,)] = [devices.run_ranks(driver.engine_run, 1, case) for _ in range(2)]
    assert_same(first, second)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("preset", "zero"), [("gpt", 1), ("llama", 2), ("llama", 3)])
def test_a_resumed_run_is_the_same(preset: str, zero: int, precision: str, tmp_path: Path) -> None:
    case = devices.settings(
        {"preset": preset, "dropout": devices.DROPOUT},
        training={"precision": precision, "deterministic": True},
        zero_stage=zero,
    )
    resume = questions.changed_on_the_way, str(tmp_path), case, case, STEPS // 2
    [(whole, resumed)] = devices.run_ranks(in_turn, 1, [(driver.engine_run, case), resume])
    assert_same(resumed, whole)


@pytest.mark.skipif(not devices.DROPOUT, reason="this device has no random generator")
@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_recomputation_drops_the_same(preset: str) -> None:
    model = {"preset": preset, "dropout": devices.DROPOUT, "attention_dropout": devices.DROPOUT}
    cases = [
        devices.settings(model, training={"recompute": kind, "deterministic": True})
        for kind in ("none", "selective", "full")
    ]
    cases.append(devices.settings({"preset": preset}, training={"deterministic": True}))
    calls = [(driver.engine_run, case) for case in cases]
    [(none, selective, full, undropped)] = devices.run_ranks(in_turn, 1, calls)
    assert_same(selective, none)
    assert_same(full, none)
    assert none.losses != undropped.losses
