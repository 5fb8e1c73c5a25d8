"""Collectives of a device through host memory give what the same collectives of the CPU give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.harness import run_distributed

WORLD = 2


def values(device: str, *shape: int) -> Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32).view(shape) * (1 + dist.get_rank())).to(device)


def all_reduce(device: str) -> list[Tensor]:
    x, later = values(device, 3), values(device, 2, 2)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    dist.all_reduce(later, async_op=True).wait()
    return [x, later]


def all_gather(device: str) -> list[Tensor]:
    parts = [values(device, 3) for _ in range(WORLD)]
    dist.all_gather(parts, values(device, 3))
    whole = values(device, 4, 2)
    # As ZeRO does: what a rank gives lies within what it gets.
    dist.all_gather_into_tensor(whole, whole[2 * dist.get_rank() : 2 * dist.get_rank() + 2])
    return [*parts, whole]


def reduce_scatter(device: str) -> list[Tensor]:
    whole = values(device, 4)
    own = whole[2 * dist.get_rank() : 2 * dist.get_rank() + 2]
    dist.reduce_scatter_tensor(own, whole)
    mine = values(device, 2)
    dist.reduce_scatter(mine, [values(device, 2) for _ in range(WORLD)])
    return [own.clone(), mine]


def broadcast_and_reduce(device: str) -> list[Tensor]:
    x, y = values(device, 3), values(device, 3)
    dist.broadcast(x, src=1)
    dist.reduce(y, dst=0)
    return [x, *([y] if dist.get_rank() == 0 else [])]


def point_to_point(device: str) -> list[Tensor]:
    x = values(device, 5)
    version = x._version
    if dist.get_rank() == 0:
        dist.send(x, dst=1)
    else:
        dist.recv(x, src=0)
    dist.barrier()
    assert x._version == version, "autograd would take it for a change of what it has saved"
    return [x]


def on_both(collective: Callable[[str], list[Tensor]]) -> list[Any]:
    from tests import pretend, staging

    expected = collective("cpu")
    device = pretend.install()
    staging.install("PrivateUse1")
    staged = collective(str(device))
    assert all(x.device == device for x in staged)
    return [(x.cpu(), y) for x, y in zip(staged, expected, strict=True)]


@pytest.mark.parametrize("collective", [all_reduce, all_gather, reduce_scatter, broadcast_and_reduce, point_to_point])
def test_equal_those_of_the_cpu(collective: Callable[[str], list[Tensor]]) -> None:
    for pairs in run_distributed(on_both, WORLD, collective):
        assert pairs
        for staged, expected in pairs:
            torch.testing.assert_close(staged, expected, rtol=0, atol=0)
