"""Which ranks of a real topology draw which masks, and whether replicas of a parameter survive training with them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import driver
from tests.harness import run_distributed


def masks_and_replicas(case: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A replicated and a sharded mask of this rank, and its replicated parameters after three steps."""
    engine = driver.start_engine(case)
    from megaqk.parallel.rng import dropout
    from megaqk.parallel.sharding import sharding_of

    for step in range(3):
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
    world = engine.world
    engine.rng.begin_step(9, micro_batch_size=1, data_rank=world.coordinate.data, data_size=world.data)
    first = engine.rng.next_call("layers.0")
    masks = [
        dropout(torch.ones(1, 32, 32), 0.5, engine.rng.seeds(first, 1, "site", sharded=sharded))
        for sharded in (False, True)
    ]
    replicas = {n: p.detach().clone() for n, p in engine.parameters.items() if sharding_of(p).dim is None}
    return masks[0], masks[1], replicas


@pytest.mark.parametrize("sequence", [False, True])
def test_masks_and_replicas(sequence: bool) -> None:
    model = {"preset": "gpt", "dropout": 0.2, "attention_dropout": 0.2, "qk_norm": True}
    case = driver.settings(model, tensor=2, data=2, zero_stage=1, sequence=sequence)
    results = run_distributed(masks_and_replicas, 4, case, init=False, timeout=120)
    world = driver.world_of(case, 4)
    for a in range(4):
        for b in range(a):
            one, other = world.coordinate_of(a), world.coordinate_of(b)
            assert torch.equal(results[a][0], results[b][0]) == (one.data == other.data), (a, b)
            assert not torch.equal(results[a][1], results[b][1]), (a, b)
            assert len(results[a][2]) > 20
            for name, value in results[a][2].items():
                assert torch.equal(value, results[b][2][name]), (name, a, b)
