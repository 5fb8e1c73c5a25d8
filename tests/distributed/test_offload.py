"""The optimizer's state in the host's memory: the ten steps of the plain loop, with every group's rates."""

import pytest

from tests.distributed import driver
from tests.harness import run_distributed

MODEL = {"preset": "gpt"}


@pytest.mark.parametrize("data", [1, 2])
def test_an_offloaded_optimizer_follows_the_plain_loop(data: int) -> None:
    case = driver.settings(MODEL, optimizer={"implementation": "torch"}, zero_stage=2, data=data)
    case["deepspeed"] = {"offload_optimizer": "cpu"}
    trace = run_distributed(driver.engine_run, data, case, init=False)[0]
    plain = driver.plain_run(MODEL)
    assert trace.losses == pytest.approx(plain.losses, rel=1e-6)
    assert trace.norms == pytest.approx(plain.norms, rel=1e-6)
    for name, weight in plain.weights.items():
        assert (trace.weights[name] - weight).abs().max() < 2e-6, name
