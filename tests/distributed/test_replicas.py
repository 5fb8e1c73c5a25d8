"""Copies of a parameter on several ranks stay one parameter: nothing else would notice that they drift apart."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megaqk.parallel.topology import ParallelDims
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
    from megaqk.runtime.device import start_process_group

    process = start_process_group()
    from megaqk.config.checks import check_world
    from megaqk.config.root import Config
    from megaqk.parallel.sharding import sharding_of
    from megaqk.training.engine import TrainingEngine, Vocabulary
    from megaqk.training.partitioning import whole

    config = Config.model_validate(case)
    layout = check_world(config, process.world_size)
    engine = TrainingEngine(config, layout, Vocabulary(tokens=driver.TOKENS, rows=driver.ROWS), process)
    for step in range(STEPS):
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), step)
    held = {}
    for name, parameter in engine.parameters.items():
        with whole(parameter):
            held[name] = (sharding_of(parameter).dim is not None, parameter.detach().clone())
    return held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_copies_are_equal_to_the_bit(topology: dict[str, Any], precision: str) -> None:
    model = {"preset": "gpt", "qk_norm": True}
    case = driver.settings(model, training={"precision": precision}, **topology)
    dims = ParallelDims(tensor=topology["tensor"], pipeline=topology.get("pipeline", 1), data=topology.get("data", 1))
    ranks = run_distributed(weights_of_this_rank, dims.world_size, case, init=False, timeout=120)
    compared = 0
    for a, one in enumerate(ranks):
        for b, other in enumerate(ranks[:a]):
            for name in one.keys() & other.keys():
                split, value = one[name]
                if not split or dims.coordinate(a).tensor == dims.coordinate(b).tensor:
                    assert torch.equal(value, other[name][1]), (name, a, b)
                    compared += 1
    assert compared > 20
