"""Copies of a parameter on several ranks stay one parameter: nothing else would notice that they drift apart."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import driver
from tests.harness import run_distributed

STEPS = 4
TOPOLOGIES: list[dict[str, Any]] = [
    {"tensor": 2, "sequence": True, "zero_stage": 1},
    {"tensor": 2, "sequence": True, "zero_stage": 2},
    {"tensor": 2, "pipeline": 2, "sequence": True, "zero_stage": 1},
    {"tensor": 2, "pipeline": 2, "zero_stage": 1},
    {"tensor": 2, "zero_stage": 3, "data": 2, "sequence": True},
]


def weights_of_this_rank(case: dict[str, Any]) -> dict[str, tuple[bool, Tensor]]:
    """Whether it is split over the tensor-parallel ranks, and what this rank holds, by name."""
    engine = driver.start_engine(case)
    from megaqk.parallel.sharding import sharding_of
    from megaqk.training.zero3 import gathered_parameter

    for step in range(STEPS):
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
    held = {}
    for name, parameter in engine.parameters.items():
        with gathered_parameter(parameter):
            held[name] = (sharding_of(parameter).dim is not None, parameter.detach().clone())
    return held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_copies_are_equal_to_the_bit(topology: dict[str, Any], precision: str) -> None:
    model = {"preset": "gpt", "qk_norm": True}
    case = driver.settings(model, training={"precision": precision}, **topology)
    size = driver.world_size(case, topology.get("data", 1))
    world = driver.world_of(case, size)
    ranks = run_distributed(weights_of_this_rank, size, case, init=False, timeout=120)
    compared = 0
    for a, one in enumerate(ranks):
        for b, other in enumerate(ranks[:a]):
            for name in one.keys() & other.keys():
                split, value = one[name]
                if not split or world.coordinate_of(a).tensor == world.coordinate_of(b).tensor:
                    assert torch.equal(value, other[name][1]), (name, a, b)
                    compared += 1
    assert compared > 20
