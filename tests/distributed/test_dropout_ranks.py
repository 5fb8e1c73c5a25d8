"""Which ranks of a real topology draw which masks, and whether replicas of a parameter survive training with them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megaqk.parallel.topology import ParallelDims
from tests.distributed import driver
from tests.harness import run_distributed


def masks_and_replicas(case: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A replicated and a sharded mask of this rank, and its replicated parameters after three steps."""
    from megaqk.runtime.device import start_process_group

    process = start_process_group()
    from megaqk.config.checks import check_world
    from megaqk.config.root import Config
    from megaqk.parallel.rng import dropout
    from megaqk.parallel.sharding import sharding_of
    from megaqk.training.engine import TrainingEngine, Vocabulary

    config = Config.model_validate(case)
    layout = check_world(config, process.world_size)
    engine = TrainingEngine(config, layout, Vocabulary(tokens=driver.TOKENS, rows=driver.ROWS), process)
    for step in range(3):
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), step)
    engine.rng.begin_step(9, micro_batch_size=1, data_rank=engine.coordinate.data, data_size=engine.dims.data)
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
    dims = ParallelDims(tensor=2, data=2)
    for a in range(4):
        for b in range(a):
            one, other = dims.coordinate(a), dims.coordinate(b)
            assert torch.equal(results[a][0], results[b][0]) == (one.data == other.data), (a, b)
            assert not torch.equal(results[a][1], results[b][1]), (a, b)
            assert len(results[a][2]) > 20
            for name, value in results[a][2].items():
                assert torch.equal(value, results[b][2][name]), (name, a, b)
