"""A loss or a gradient that is lost on one rank alone: all ranks skip the step, and it changes nothing on any."""

import math
from typing import Any

import pytest
import torch

from tests.distributed import driver
from tests.harness import run_distributed

CASES: list[dict[str, Any]] = [
    *({"zero_stage": stage, "data": 2} for stage in range(4)),
    *({"zero_stage": stage, "data": 2, "training": {"precision": "bf16"}} for stage in (1, 2, 3)),
    {"pipeline": 2, "zero_stage": 0},
    {"pipeline": 2, "training": {"precision": "bf16"}},
    {"tensor": 2, "zero_stage": 0},
    {"tensor": 2, "training": {"precision": "bf16"}},
    {
        "zero_stage": 2,
        "data": 2,
        "training": {"precision": "bf16"},
        "optimizer": {"implementation": "torch"},
        "deepspeed": {"offload_optimizer": "cpu"},
    },
]
"""Of two ranks each."""


def inner_optimizer(engine: Any) -> Any:
    """The one that ZeRO's optimizers call, or the only one."""
    optimizer = engine.engine.optimizer
    return getattr(optimizer, "optimizer", optimizer)


def kept(engine: Any) -> list[torch.Tensor]:
    """All that a step may change on this rank: weights, their fp32 copies, moments and counts."""
    inner = inner_optimizer(engine)
    parts = [getattr(parameter, "ds_tensor", parameter.data) for parameter in engine.parameters.values()]
    for group in inner.param_groups:
        parts += group["params"]
    parts += [part for state in inner.state.values() for part in state.values() if isinstance(part, torch.Tensor)]
    return [part.detach().clone() for part in parts]


def lose_on_rank_1(cases: list[dict[str, Any]]) -> list[list[tuple[bool, bool, float]]]:
    """Of three steps of each case (lost loss, lost gradient, neither): skipped, nothing changed, mean loss."""
    from megaqk.model import decoder

    lost, rank = "", torch.distributed.get_rank()
    exact = decoder.vocab_parallel_cross_entropy

    def infinite_loss(*args: Any, **kwargs: Any) -> Any:
        # A constant more: the gradient is what it would have been.
        return exact(*args, **kwargs) + (math.inf if lost == "loss" and rank == 1 else 0.0)

    decoder.vocab_parallel_cross_entropy = infinite_loss

    def lost_gradient(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if lost == "gradient" and rank == 1 else gradient

    seen = []
    for case in cases:
        engine, calls = driver.start_engine(case), 0
        inner_step = inner_optimizer(engine).step

        def counted(*args: Any, step: Any = inner_step, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return step(*args, **kwargs)

        inner_optimizer(engine).step = counted
        for parameter in engine.parameters.values():
            parameter.register_hook(lost_gradient)
        engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))
        steps = []
        for step in (1, 2, 3):
            lost = ("loss", "gradient", "")[step - 1]
            before, calls = kept(engine), 0
            engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
            # Some optimizers count a step that has no gradients.
            alike = not calls and all(map(torch.equal, before, kept(engine)))
            steps.append((engine.skipped, alike, float(engine.loss_and_norm()[0])))
        seen.append(steps)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_one_rank_loses_all_skip(precision: str) -> None:
    cases = [{"deepspeed": {}, **case} for case in CASES]
    cases = [{"deepspeed": case.pop("deepspeed"), **driver.settings({}, **case)} for case in cases]
    cases = [case for case in cases if case["training"].get("precision", "fp32") == precision]
    mine, other = run_distributed(lose_on_rank_1, 2, cases, timeout=100)
    for case, steps, others in zip(cases, mine, other, strict=True):
        print(case["parallel"], steps)
        assert [step[:2] for step in steps] == [(True, True), (True, True), (False, False)]
        assert str(steps) == str(others)  # a NaN is like a NaN
        assert [math.isfinite(loss) for _, _, loss in steps] == [False, True, True]
