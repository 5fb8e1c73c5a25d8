"""The query/key multiplier acts on the weights it should, by the factor it should, wherever they live."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.distributed import commands, driver
from tests.distributed.driver import Trace, is_upper_qk
from tests.harness import run_distributed

MODEL = {"preset": "gpt"}
HELD_STEPS = 2
# Of a weight around 0.1 to 0.5 in fp32, a few units in the last place: an update is the difference of two such.
ROUNDING = 1e-7

TOPOLOGIES: list[dict[str, Any]] = [
    {"data": 1, "zero_stage": 0},
    {"data": 2, "zero_stage": 2},
    {"data": 2, "zero_stage": 3},
    {"data": 1, "tensor": 2, "sequence": True, "zero_stage": 1},
    {"data": 1, "pipeline": 2, "zero_stage": 1},
    {"data": 1, "pipeline": 2, "zero_stage": 0, "layers_per_stage": (3, 1)},
    {"data": 1, "tensor": 2, "pipeline": 2, "zero_stage": 1, "sequence": True},
]
TOPOLOGIES_OF_FOUR: list[dict[str, Any]] = [
    {"data": 2, "tensor": 2, "zero_stage": 3},
    {"data": 2, "pipeline": 2, "zero_stage": 1},
]
TIMINGS: dict[str, dict[str, Any]] = {
    "baseline": {"enabled": False},
    "zero": {"multiplier": 0.0, "hold": HELD_STEPS, "release": "step", "release_end": None},
    "tenth": {"multiplier": 0.1, "hold": HELD_STEPS, "release": "step", "release_end": None},
    "tenth-unscaled": {"multiplier": 0.1, "hold": HELD_STEPS, "weight_decay": "unscaled"},
}


def name_of(topology: dict[str, Any]) -> str:
    short = {"tensor": "tp", "pipeline": "pp", "data": "dp", "zero_stage": "z", "sequence": "sp"}
    return "-".join(f"{short.get(key, key)}{value}" for key, value in topology.items())


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(topology, id=name_of(topology)) for topology in TOPOLOGIES),
        *(pytest.param(topology, id=name_of(topology), marks=pytest.mark.full) for topology in TOPOLOGIES_OF_FOUR),
    ],
)
def traces(request: pytest.FixtureRequest) -> dict[str, Trace]:
    """Three steps under every timing, with the weights after each."""
    topology: dict[str, Any] = dict(request.param)
    cases = []
    for timing in TIMINGS.values():
        case = driver.settings(MODEL, timing=timing, **topology)
        cases.append({"case": case, "steps": HELD_STEPS + 1, "history": True})
    world = driver.world_size(cases[0]["case"], topology["data"])
    results = run_distributed(driver.engine_runs, world, cases, init=False, timeout=150)
    return dict(zip(TIMINGS, results[0], strict=True))


def update(trace: Trace, name: str, step: int = 0) -> Tensor:
    return trace.history[step + 1][name].double() - trace.history[step][name].double()


def test_starts_from_the_weights_of_one_process(traces: dict[str, Trace]) -> None:
    expected = driver.plain_decoder(MODEL).global_parameters()
    for trace in traces.values():
        assert trace.history[0].keys() == expected.keys()
        assert all(torch.equal(trace.history[0][name], value) for name, value in expected.items())


def test_zero_freezes_the_upper_query_and_key_until_release(traces: dict[str, Trace]) -> None:
    weights = traces["zero"].history
    upper = {name for name in weights[0] if is_upper_qk(name)}
    assert len(upper) == 8  # two layers, query and key, weight and bias
    for step in range(HELD_STEPS + 1):
        for name in weights[0]:
            moved = not torch.equal(weights[step][name], weights[step + 1][name])
            assert moved == (name not in upper or step == HELD_STEPS), (name, step)


def test_a_tenth_is_a_tenth_of_the_first_update(traces: dict[str, Trace]) -> None:
    slowed, baseline = traces["tenth"], traces["baseline"]
    assert slowed.losses[0] == baseline.losses[0]
    for name in baseline.weights:
        factor = 0.1 if is_upper_qk(name) else 1.0
        error = (update(slowed, name) - factor * update(baseline, name)).abs().max()
        assert error <= ROUNDING, name
        if name.endswith("weight"):
            assert update(baseline, name).abs().max() > 1000 * ROUNDING, name


def test_unscaled_decay_goes_on_at_full_rate(traces: dict[str, Trace]) -> None:
    baseline, unscaled = traces["baseline"], traces["tenth-unscaled"]
    rate = driver.learning_rate(0)
    for name in filter(is_upper_qk, baseline.weights):
        start = baseline.history[0][name].double()
        decay = -rate * driver.DECAY * start if start.dim() > 1 else torch.zeros_like(start)
        expected = 0.1 * (update(baseline, name) - decay) + decay
        assert (update(unscaled, name) - expected).abs().max() <= ROUNDING, name
        if start.dim() > 1:
            assert (0.9 * decay).abs().max() > 100 * ROUNDING, "the two treatments must differ visibly"


# TensorBoard's curves of a real run against formulas written out here.

PEAK, WARMUP, MIN_RATIO, STEPS = 3e-3, 2, 0.1, 10


def base_rate(taken: int) -> float:
    if taken < WARMUP:
        return PEAK * (taken + 1) / WARMUP
    return PEAK * (MIN_RATIO + (1 - MIN_RATIO) * 0.5 * (1 + math.cos(math.pi * (taken - WARMUP) / (STEPS - WARMUP))))


def linear_release(taken: int) -> float:
    if taken < 4:
        return 0.1
    return 1.0 if taken >= 8 else 0.1 + 0.9 * (taken - 4) / 4


def cosine_release(taken: int) -> float:
    # In tokens: 8 samples of 16 a step; held for 3 steps, released by step 8.
    tokens = 128 * taken
    if tokens < 384:
        return 0.25
    return 1.0 if tokens >= 1024 else 0.25 + 0.75 * (1 - math.cos(math.pi * (tokens - 384) / 640)) / 2


COSINE = {"multiplier": 0.25, "unit": "tokens", "hold": 384, "release": "cosine", "release_end": 1024}


@pytest.mark.parametrize(
    ("timing", "expected", "world", "parallel"),
    [
        ({}, linear_release, 1, {}),
        (COSINE, cosine_release, 2, {"pipeline": 2}),
    ],
    ids=["linear-steps", "cosine-tokens-pp2"],
)
def test_curves_in_tensorboard(
    tmp_path: Path,
    write_config: Callable[..., Path],
    timing: dict[str, Any],
    expected: Callable[[int], float],
    world: int,
    parallel: dict[str, Any],
) -> None:
    config = write_config(tmp_path, qk_timing=timing, parallel=parallel)
    argv = ["pretrain", str(config)]
    assert run_distributed(commands.run_command, world, argv, init=False, timeout=120) == [0] * world
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    groups = {tag.removeprefix("lr/") for tag in scalars if tag.startswith("lr/")}
    upper = {group for group in groups if group.startswith("upper_qk")}
    assert upper == {"upper_qk", "upper_qk.no_decay"}
    assert groups - upper == {"decay", "no_decay"}
    assert groups == {tag.removeprefix("multiplier/") for tag in scalars if tag.startswith("multiplier/")}
    for group in groups:
        for tag, curve in (
            (f"multiplier/{group}", lambda taken: 1.0),
            (f"lr/{group}", base_rate),
        ):
            points = events.Scalars(tag)
            assert [point.step for point in points] == list(range(1, STEPS + 1))
            for point in points:
                taken = point.step - 1
                value = curve(taken) * (expected(taken) if group in upper else 1.0)
                assert point.value == pytest.approx(value, rel=1e-6), (tag, point.step)  # TensorBoard holds fp32
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    exact = [line["lr/upper_qk"] for line in lines if "loss" in line]
    assert exact == pytest.approx([base_rate(t) * expected(t) for t in range(STEPS)], rel=1e-12)
