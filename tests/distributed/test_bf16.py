"""bf16 with fp32 accumulation follows the fp32 loop of one process, within its rounding, on every kind of topology."""

from typing import Any

import pytest

from tests.distributed import driver
from tests.harness import run_distributed

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"zero_stage": 1}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2, "sequence": True, "zero_stage": 1}),
    "data 2, ZeRO-2": (2, {"zero_stage": 2, "data": 2}),
    "tensor 2 x data 2, ZeRO-3": (4, {"tensor": 2, "zero_stage": 3, "data": 2}),
}


@pytest.fixture(scope="module")
def reference() -> driver.Trace:
    return driver.plain_run({"preset": "gpt"})


@pytest.mark.parametrize("name", CASES)
def test_follows_the_fp32_loop(name: str, reference: driver.Trace) -> None:
    world, parallel = CASES[name]
    case = driver.settings({"preset": "gpt"}, training={"precision": "bf16"}, **parallel)
    trace = run_distributed(driver.engine_run, world, case, init=False, timeout=120)[0]
    # A bf16 mantissa has 8 bits: 2^-8 = 4e-3 for one rounding.
    assert trace.losses == pytest.approx(reference.losses, rel=4e-3)
    assert trace.norms == pytest.approx(reference.norms, rel=2e-2)
    # And it is bf16: fp32 agrees to 1e-6.
    assert trace.losses != pytest.approx(reference.losses, rel=1e-6)
