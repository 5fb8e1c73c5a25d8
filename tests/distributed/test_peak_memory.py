"""The estimate of a run's memory against the peak of real processes, as the kernel counts it."""

import functools
from typing import Any

import pytest

from megaqk.config.root import Config
from megaqk.model.decoder import parameter_inventory
from megaqk.model.vocab_size import Vocabulary
from megaqk.optim.groups import plan_groups
from megaqk.training.memory import estimate_memory
from tests.distributed import driver, resident
from tests.harness import run_distributed

VOCABULARY = Vocabulary(tokens=2000, rows=2048)
# In one of them activations matter more, in the other weights.
DEEP: dict[str, Any] = {"hidden_size": 192, "length": 384, "samples": 2}
WIDE: dict[str, Any] = {"hidden_size": 448, "length": 64, "samples": 1}
OFFLOAD = {"offload_optimizer": "cpu"}
AT_ONCE = {"immediate_grad_update": True}

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt": (1, {"preset": "gpt", **DEEP}),
    "llama": (1, {"preset": "llama", **DEEP}),
    "llama, full recomputation": (1, {"preset": "llama", "recompute": "full", **DEEP}),
    "gpt, wide, ZeRO-0": (1, {"preset": "gpt", "zero_stage": 0, **WIDE}),
    "gpt, bf16": (1, {"preset": "gpt", "precision": "bf16", **DEEP}),
    "llama, wide, data 2, bf16": (2, {"preset": "llama", "precision": "bf16", **WIDE}),
    "llama, wide, data 2, bf16, added at once": (
        2,
        {"preset": "llama", "precision": "bf16", "deepspeed": AT_ONCE, **WIDE},
    ),
    "gpt, wide, data 2, ZeRO-2, bf16": (2, {"preset": "gpt", "zero_stage": 2, "precision": "bf16", **WIDE}),
    "gpt, wide, data 2, ZeRO-1, offloaded": (2, {"preset": "gpt", "zero_stage": 1, "deepspeed": OFFLOAD, **WIDE}),
    "gpt, wide, data 2, ZeRO-3": (2, {"preset": "gpt", "zero_stage": 3, **WIDE}),
    "llama, tensor 2": (2, {"preset": "llama", "tensor": 2, **DEEP}),
    "gpt, tensor 2, sequence": (2, {"preset": "gpt", "tensor": 2, "sequence": True, **DEEP}),
    "gpt, pipeline 2": (2, {"preset": "gpt", "pipeline": 2, **DEEP}),
    "llama, wide, pipeline 2, bf16": (2, {"preset": "llama", "pipeline": 2, "precision": "bf16", **WIDE}),
}


def settings(world: int, case: dict[str, Any], num_layers: int) -> dict[str, Any]:
    parallel = {key: case[key] for key in ("tensor", "pipeline", "sequence", "zero_stage") if key in case}
    data = world // (parallel.get("tensor", 1) * parallel.get("pipeline", 1))
    training = {
        "sequence_length": case["length"],
        "micro_batch_size": case["samples"],
        "global_batch_size": 2 * case["samples"] * data,
        "precision": case.get("precision", "fp32"),
        "recompute": case.get("recompute", "none"),
    }
    model = {"preset": case["preset"], "num_layers": num_layers, "hidden_size": case["hidden_size"]}
    # A bucket that a few weights fill: of a larger one the kernel counts what is used.
    buckets = {"reduce_bucket_size": 1_000_000, "stage3_prefetch_bucket_size": 250_000}
    sections = driver.settings({}, training=training, optimizer={"implementation": "torch"}, **parallel)
    return sections | {
        "model": {**model, "num_heads": 4},
        "deepspeed": {**buckets, **case.get("deepspeed", {})},
    }


@functools.cache
def measured(world_size: int) -> dict[str, list[int]]:
    """The peak of each rank in the cases of a world, one after the other in the same processes."""
    names = [name for name, (size, _) in CASES.items() if size == world_size]
    runs = [tuple(settings(world_size, CASES[name][1], layers) for layers in (4, 2)) for name in names]
    by_rank = run_distributed(resident.peaks, world_size, runs, VOCABULARY, init=False, timeout=300)
    return {name: list(peaks) for name, peaks in zip(names, zip(*by_rank, strict=True), strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_a_tenth(name: str) -> None:
    world_size, case = CASES[name]
    sections = settings(world_size, case, 4)
    config, world = Config.model_validate(sections), driver.world_of(sections, world_size)
    parameters = parameter_inventory(config, rows=VOCABULARY.rows)
    groups = plan_groups(config, parameters)
    stages = estimate_memory(config, world, VOCABULARY, parameters, groups, cuda=False)
    for stage, memory in enumerate(stages):
        ranks = [rank for rank in range(world_size) if world.coordinate_of(rank).pipeline == stage]
        peak = max(measured(world_size)[name][rank] for rank in ranks)
        # What is offloaded lies in the same memory here.
        estimate = memory.total + memory.host
        print(f"{name}, stage {stage}: {estimate / peak:.3f} of {peak / 2**20:.0f} MiB")
        assert estimate == pytest.approx(peak, rel=0.1)
