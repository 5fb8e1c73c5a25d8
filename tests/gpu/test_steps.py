"""fp32 training steps on the device follow the plain loop of the CPU, on one rank and on several that share it."""

import functools
from typing import Any

import pytest

from tests import devices
from tests.distributed import driver
from tests.distributed.driver import Trace
from tests.distributed.test_topologies import LOSS_TOLERANCE, MODELS, NORM_TOLERANCE, Case
from tests.harness import DistributedError

WEIGHT_TOLERANCE = 5e-5  # absolute, after ten steps; the order of sums is another one

CASES = [
    *(
        Case(model, zero=zero, recompute=recompute)
        for model in ("gpt", "llama")
        for zero in range(4)
        for recompute in ("none", "full")
    ),
    Case("gpt", tensor=2),
    Case("llama", tensor=2, zero=0),
    Case("gpt", tensor=2, sequence=True),
    Case("llama", tensor=2, sequence=True, recompute="selective"),
    Case("gpt", pipeline=2),
    Case("llama", pipeline=2, zero=0),
    Case("gpt", data=2, zero=1),
    Case("gpt", data=2, zero=2),
    Case("gpt", data=2, zero=3),
    Case("llama", data=2, zero=3),
    Case("llama", tensor=2, pipeline=2, sequence=True),
]


COMPILED = [Case("gpt"), Case("llama", recompute="full"), Case("llama", tensor=2, sequence=True)]


@functools.cache
def plain(model: str) -> Trace:
    return driver.plain_run(MODELS[model])


def run(cases: list[Case], *, compiled: bool = False) -> list[Trace]:
    runs = [case.run() for case in cases]
    for arguments in runs:
        arguments["case"]["training"]["compile"] = compiled
    traces: list[Trace] = devices.run_ranks(driver.engine_runs, cases[0].world, runs, timeout=60 + 20 * len(runs))[0]
    return traces


@functools.cache
def traces(world: int) -> "dict[Case, Trace | DistributedError]":
    """All cases of a world in the same processes; each alone where that fails, to know which do."""
    cases = [case for case in CASES if case.world == world]
    try:
        return dict(zip(cases, run(cases), strict=True))
    except DistributedError as error:
        results: dict[Case, Any] = dict.fromkeys(cases, error)
        for case in cases:
            try:
                results[case] = run([case])[0]
            except DistributedError as alone:
                results[case] = alone
        return results


def check(ours: Trace, reference: Trace) -> None:
    errors = {
        "loss": max(abs(a - b) / b for a, b in zip(ours.losses, reference.losses, strict=True)),
        "norm": max(abs(a - b) / b for a, b in zip(ours.norms, reference.norms, strict=True)),
        "weights": max(float((ours.weights[n] - w).abs().max()) for n, w in reference.weights.items()),
    }
    print(errors)
    assert errors["loss"] <= LOSS_TOLERANCE
    assert errors["norm"] <= NORM_TOLERANCE
    assert errors["weights"] <= WEIGHT_TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_follows_the_plain_loop(case: Case) -> None:
    ours = traces(case.world)[case]
    if isinstance(ours, DistributedError):
        raise ours
    check(ours, plain(case.model))


@pytest.mark.skipif(not devices.ON_CUDA, reason="the compiler knows no such device, and the CPU has tests of its own")
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_blocks_follow_it_too(case: Case) -> None:
    check(run([case], compiled=True)[0], plain(case.model))
