"""Compiled blocks and loss follow the plain loop, in one graph for all blocks, whatever splits them."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import driver
from tests.harness import run_distributed

STEPS = 3
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "none", {}),
    "gpt, tensor 2, sequence parallel, selective": ("gpt", "selective", {"tensor": 2, "sequence": True}),
    "llama, tensor 2 x pipeline 2, full": ("llama", "full", {"tensor": 2, "pipeline": 2}),
}


def compiled_steps(case: dict[str, Any]) -> tuple[list[float], list[float], int, dict[str, int]]:
    """Losses, norms, graphs and reasons for breaks."""
    from torch._dynamo.utils import counters

    engine = driver.start_engine(case)
    losses, norms = [], []
    for step in range(STEPS):
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
        losses.append(float(engine.loss()))
        norms.append(engine.gradient_norm())
    return losses, norms, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


@pytest.mark.parametrize("name", CASES)
def test_follows_the_plain_loop_in_one_graph(name: str, tmp_path: Path) -> None:
    preset, recompute, parallel = CASES[name]
    case = driver.settings({"preset": preset}, training={"compile": True, "recompute": recompute}, **parallel)
    # Not the user's cache, where another version of these graphs may lie.
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    size = driver.world_size(case)
    results = run_distributed(compiled_steps, size, case, init=False, timeout=280, env=env)
    plain = driver.plain_run({"preset": preset})
    for rank, (losses, norms, graphs, breaks) in enumerate(results):
        assert losses == pytest.approx(plain.losses[:STEPS], rel=1e-5)
        assert norms == pytest.approx(plain.norms[:STEPS], rel=1e-5)
        # A block; and on the last stage the two passes of the loss.
        last = rank >= size - size // parallel.get("pipeline", 1)
        assert graphs == (3 if last else 1)
        assert not breaks
