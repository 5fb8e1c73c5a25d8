"""Gradients across the tensor- and pipeline-parallel ranks: the parts to sum, the norm, the clipping."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from megaqk.parallel.sharding import sharding_of
from megaqk.parallel.tensor_parallel import TensorParallel


def partial_gradient_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The replicated parameters of which every tensor-parallel rank sees a part of the gradient."""
    return [p for p in parameters if sharding_of(p).partial_gradient]


def reduce_partial_gradients(gradients: Sequence[Tensor], tp: TensorParallel) -> None:
    """Sum the group's parts of these gradients in place, in one collective."""
    if tp.size == 1 or not gradients:
        return
    flat: Tensor = _flatten_dense_tensors(gradients)  # type: ignore[no-untyped-call]
    dist.all_reduce(flat, group=tp.group)
    totals = _unflatten_dense_tensors(flat, gradients)  # type: ignore[no-untyped-call]
    for gradient, total in zip(gradients, totals, strict=True):
        gradient.copy_(total)


def global_norm(parameters: Iterable[nn.Parameter], *, tp: TensorParallel, group: dist.ProcessGroup | None) -> Tensor:
    """L2 norm of the gradient of the whole model.

    Sharded parameters count on every rank, replicated ones on the first tensor-parallel rank, tied ones on the
    first stage that holds them (DeepSpeed marks the copies with `ds_pipe_replicated`).

    Args:
        parameters: This rank's parameters; gradients of None count as zero.
        tp: The tensor-parallel group.
        group: The ranks that together hold one copy of the model; None for this process alone.

    Returns:
        A scalar on the device of the gradients, equal on every rank of `group`.
    """
    norms = []
    device = torch.device("cpu")
    for parameter in parameters:
        device = parameter.device
        if parameter.grad is None or getattr(parameter, "ds_pipe_replicated", False):
            continue
        if sharding_of(parameter).dim is not None or tp.rank == 0:
            norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
    square = torch.stack(norms).square().sum() if norms else torch.zeros((), device=device)
    if group is not None:
        dist.all_reduce(square, group=group)
    return square.sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale gradients in place so that a norm above `max_norm` becomes `max_norm`; no host synchronisation.

    The factor is DeepSpeed's, min(1, max_norm / (norm + 1e-6)), so that every ZeRO stage clips alike.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
