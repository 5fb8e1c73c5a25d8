"""What a resumed run may change takes effect at once, whatever the checkpoint brings back."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import driver, questions
from tests.harness import run_distributed

AT = 5
CHANGES: dict[str, Any] = {"grad_clip": 0.02, "betas": (0.7, 0.99), "eps": 1e-5}
TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"zero_stage": 0}),
    "data 2, ZeRO-2": (2, {"zero_stage": 2, "data": 2}),
    "data 2, ZeRO-3": (2, {"zero_stage": 3, "data": 2}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2, "sequence": True, "zero_stage": 1}),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_clipping_and_adam_follow_the_new_configuration(tmp_path: Path, name: str) -> None:
    world, parallel = TOPOLOGIES[name]
    before = driver.settings({"preset": "gpt"}, **parallel)
    after = driver.settings({"preset": "gpt"}, optimizer=CHANGES, **parallel)
    arguments = (str(tmp_path), before, after, AT)
    trace = run_distributed(questions.changed_on_the_way, world, *arguments, init=False, timeout=120)[0]
    expected = driver.plain_run({"preset": "gpt"}, changes=CHANGES, at=AT)
    unchanged = driver.plain_run({"preset": "gpt"})
    assert trace.losses == pytest.approx(expected.losses, rel=1e-5)
    assert trace.norms == pytest.approx(expected.norms, rel=1e-5)
    assert min(expected.norms) > CHANGES["grad_clip"], "it clips at every step"
    for name, weight in trace.weights.items():
        assert float((weight - expected.weights[name]).abs().max()) < 2e-5, name
    moved = max(float((w - unchanged.weights[n]).abs().max()) for n, w in expected.weights.items())
    assert moved > 1e-3, "the changes matter"
