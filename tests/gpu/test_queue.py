"""What depends on the order of the device's queues: collectives in flight, and a host that must not wait."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from tests import devices
from tests.distributed import driver

ROUNDS, WIDTH = (1000, 512) if devices.ON_CUDA else (20, 32)


def products(x: Tensor, weights: list[Tensor], tp: Any) -> list[Tensor]:
    """Outputs of column-parallel products, then the gradients of input and weights."""
    from megaqk.parallel.linear import _ColumnParallel

    inputs = [t.detach().requires_grad_() for t in (x, *weights)]
    first, *others = inputs
    outputs = _ColumnParallel.apply(first, tp.name, tp.sequence, *(t for weight in others for t in (weight, None)))
    sum(y.square().mean() for y in outputs).backward()
    return [*(y.detach() for y in outputs), *(t.grad for t in inputs if t.grad is not None)]


def churn(device: torch.device, generator: torch.Generator) -> None:
    """Give the allocator memory full of NaN to hand out again, in sizes like those of the layer's buffers."""
    for _ in range(8):
        rows = int(torch.randint(1, 4 * WIDTH, (), generator=generator))
        torch.full((rows, WIDTH), torch.nan, device=device)


def rounds_that_differ() -> int:
    """Rounds whose results are not those of a round with nothing else in flight.

    The group has one rank, so that NCCL carries it; the collectives still run in a queue of their own.
    """
    from megaqk.parallel.tensor_parallel import TensorParallel

    engine = driver.start_engine(devices.settings({"preset": "gpt"}))
    device = engine.world.device
    tp = TensorParallel(size=1, rank=0, group=dist.group.WORLD, sequence=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, WIDTH, WIDTH, generator=generator).to(device)
    weights = [(torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5).to(device) for _ in range(3)]
    quiet = [t.cpu() for t in products(x, weights, tp)]
    for ours, weight in zip(quiet, weights, strict=False):
        torch.testing.assert_close(ours, F.linear(x, weight).cpu(), rtol=1e-4, atol=1e-4)
    different = torch.zeros((), dtype=torch.int64, device=device)
    expected = [t.to(device) for t in quiet]
    for _ in range(ROUNDS):
        churn(device, generator)
        results = products(x, weights, tp)
        churn(device, generator)
        same = torch.stack([(a == b).all() for a, b in zip(results, expected, strict=True)]).all()
        different += ~same
    return int(different)


def test_collectives_in_flight_keep_their_buffers() -> None:
    assert devices.run_ranks(rounds_that_differ, 1) == [0]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Refuse whatever makes the host wait for the device."""
    if devices.ON_CUDA:
        torch.cuda.set_sync_debug_mode("error")
        yield
        torch.cuda.set_sync_debug_mode("default")
        return
    if devices.NAME == "pretend":
        from tests import pretend

        del pretend.waits[:]
        yield
        assert not pretend.waits
        return
    yield


def forward_and_backward(cases: list[dict[str, Any]]) -> list[float]:
    """The first micro-batch of a step of each case; its loss."""
    return [_forward_and_backward(case) for case in cases]


def _forward_and_backward(case: dict[str, Any]) -> float:
    engine = driver.start_engine(case)
    from megaqk.training.engine import to_device

    engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))  # whatever is done once
    engine.rng.begin_step(driver.BATCH, micro_batch_size=1, data_rank=0, data_size=1)
    batches = engine._weighted(driver.micro_batches(engine, driver.batches()[1]), engine.world.micro_batches)
    inputs, labels = (to_device(part, engine.world.device) for part in next(batches))
    with no_waiting():
        loss = engine.engine(inputs, labels)
        engine.engine.backward(loss)
    return float(loss)


def test_forward_and_backward_do_not_wait() -> None:
    training = {"precision": "bf16", "recompute": "selective"}
    cases = [
        devices.settings({"preset": preset, "dropout": devices.DROPOUT}, training=training)
        for preset in ("gpt", "llama")
    ]
    [losses] = devices.run_ranks(forward_and_backward, 1, cases)
    assert all(0 < loss < 10 for loss in losses)
