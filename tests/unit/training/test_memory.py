"""What ZeRO shares, in numbers that can be checked by hand; real runs: `tests/distributed/test_peak_memory.py`."""

from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.model.decoder import parameter_inventory
from megaqk.model.vocab_size import Vocabulary
from megaqk.optim.groups import plan_groups
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch
from megaqk.training.memory import estimate_memory
from megaqk.training.zero_memory import Memory

VOCABULARY = Vocabulary(tokens=1000, rows=1024)
HIDDEN, LAYERS = 64, 8
# Attention, an ungated feed-forward network, two norms; the embedding, which is the head, positions, the last norm.
PARAMETERS = LAYERS * (12 * HIDDEN**2 + 2 * HIDDEN) + (1024 + 16 + 1) * HIDDEN

# So long that activations decide.
LONG: dict[str, dict[str, Any]] = {
    "training": {"sequence_length": 4096},
    "model": {"positions": "none"},
    "deepspeed": {"reduce_bucket_size": 1000},
}


def estimate(world_size: int = 1, *, cuda: bool = True, **sections: dict[str, Any]) -> list[Memory]:
    model = {"num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 4, "bias": False, **sections.pop("model", {})}
    training = {"global_batch_size": 64, "micro_batch_size": 1, "sequence_length": 16, **sections.pop("training", {})}
    config = build_config({"model": model, "training": training, **sections})
    world = World(config, Launch(world_size=world_size))
    parameters = parameter_inventory(config, rows=VOCABULARY.rows)
    return estimate_memory(config, world, VOCABULARY, parameters, plan_groups(config, parameters), cuda=cuda)


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "optimizer"),
    [
        ("fp32", 0, 4, 8),
        ("fp32", 1, 4, 12 / 4),
        ("bf16", 1, 2, 12 / 4),
        ("bf16", 2, 2, 12 / 4),
        # Small weights stay whole; these all do.
        ("bf16", 3, 2 + 2 / 4, 12 / 4),
    ],
)
def test_bytes_for_each_parameter_on_four_replicas(
    precision: str, stage: int, weights: float, optimizer: float
) -> None:
    [memory] = estimate(4, training={"precision": precision}, parallel={"zero_stage": stage})
    assert memory.weights == pytest.approx(weights * PARAMETERS, rel=1e-3)
    assert memory.optimizer == pytest.approx(optimizer * PARAMETERS, rel=1e-3)


def test_gradients_added_up_at_once_have_no_second_copy() -> None:
    def gradients(at_once: bool) -> int:
        [memory] = estimate(training={"precision": "bf16"}, deepspeed={"immediate_grad_update": at_once})
        return memory.gradients

    # The fp32 sums, the bf16 gradients.
    assert gradients(False) == (4 + 2) * PARAMETERS
    assert gradients(True) == 4 * PARAMETERS


def test_an_offloaded_optimizer_is_the_hosts() -> None:
    deepspeed, optimizer = {"offload_optimizer": "cpu"}, {"implementation": "torch"}
    [memory] = estimate(2, deepspeed=deepspeed, optimizer=optimizer, parallel={"zero_stage": 2})
    assert memory.optimizer == 0
    assert memory.host > 12 * PARAMETERS / 2
    assert memory.snapshot == 12 * PARAMETERS // 2
    assert memory.total == sum(vars(memory).values()) - memory.host - memory.snapshot


def test_a_pipeline_stage_holds_the_micro_batches_that_are_ahead() -> None:
    one, four = (
        [memory.activations for memory in estimate(stages, **LONG, parallel={"pipeline": stages})] for stages in (1, 4)
    )
    for stage, activations in enumerate(four):
        assert activations == pytest.approx((4 - stage) / 4 * one[0], rel=0.15)


def test_recomputation_and_tensor_parallelism_take_less() -> None:
    def activations(world_size: int = 1, recompute: str = "none", **parallel: Any) -> int:
        long = LONG | {"training": {**LONG["training"], "recompute": recompute}}
        [memory] = estimate(world_size, **long, parallel=parallel)
        return memory.activations

    plain = activations()
    assert plain > activations(recompute="selective") > activations(recompute="full")
    assert plain > activations(2, tensor=2) > activations(2, tensor=2, sequence=True) > 0.45 * plain
