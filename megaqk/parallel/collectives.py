"""Collectives of the tensor-parallel group, plain and differentiable.

Shape suffixes: B batch, S sequence, H features. Sequence-parallel tensors are (B, S / size, H).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megaqk.parallel.tensor_parallel import TensorParallel

# torch 2.13 renamed the single-tensor forms; older releases know only the second names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class PendingSequence:
    """A collective along the sequence in flight; `wait` gives the tensor in its usual layout."""

    def __init__(self, buffer: Tensor, work: dist.Work, *, gathered_from: int) -> None:
        self._buffer = buffer
        self._work = work
        self._size = gathered_from

    def wait(self) -> Tensor:
        """Block until done: (B, S, H) after a gather, (B, S / size, H) after a reduce-scatter."""
        self._work.wait()
        if self._size == 1:
            return self._buffer
        gathered, features = self._buffer.shape[0], self._buffer.shape[-1]
        batch = gathered // self._size
        parts = self._buffer.view(self._size, batch, -1, features).transpose(0, 1)  # (B, size, S / size, H)
        return parts.reshape(batch, -1, features)  # copy-free where B is 1


def start_gather_sequence(x: Tensor, group: dist.ProcessGroup) -> PendingSequence:
    """Start gathering (B, S / size, H) to (B, S, H)."""
    buffer = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
    work = _all_gather(buffer, x.contiguous(), group=group, async_op=True)
    return PendingSequence(buffer, work, gathered_from=group.size())


def start_reduce_scatter_sequence(x: Tensor, group: dist.ProcessGroup) -> PendingSequence:
    """Start summing (B, S, H) over the group and keeping this rank's (B, S / size, H)."""
    batch, sequence, features = x.shape
    parts = x.view(batch, group.size(), sequence // group.size(), features).transpose(0, 1).contiguous()
    buffer = x.new_empty(parts.shape[1:])
    work = _reduce_scatter(buffer, parts.flatten(0, 1), group=group, async_op=True)
    return PendingSequence(buffer, work, gathered_from=1)


class _ReduceFromParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        # Behind autograd's back, which forbids to overwrite a view that another custom function returned. No formula
        # of the sums and products that end here needs the partial result again.
        total = x.detach()
        dist.all_reduce(total, group=tp.group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        assert tp.group is not None
        ctx.group = tp.group
        return start_reduce_scatter_sequence(x, tp.group).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return start_gather_sequence(grad, ctx.group).wait(), None


def reduce_output(x: Tensor, tp: TensorParallel) -> Tensor:
    """Sum the group's partial outputs (B, S, H), overwriting x.

    Returns:
        (B, S, H) on every rank, or this rank's (B, S / size, H) under sequence parallelism.
    """
    if tp.size == 1:
        return x
    function = _ReduceScatterSequence if tp.sequence else _ReduceFromParallel
    return function.apply(x, tp)  # type: ignore[no-any-return, no-untyped-call]
