"""How a parameter is split, kept on the parameter itself."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaqk.parallel.tensor_parallel import TensorParallel


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How one parameter lies in its tensor-parallel group.

    Attributes:
        shape: Shape of the unsharded tensor.
        dim: The split dimension; None if every rank holds the whole tensor.
        partial_gradient: Whether each rank sees a part of the gradient of a tensor that all of them hold, so that
            the parts must be summed over the group.
    """

    shape: tuple[int, ...]
    dim: int | None
    partial_gradient: bool


def new_parameter(
    shape: tuple[int, ...],
    tp: TensorParallel,
    *,
    role: object = None,
    dim: int | None = None,
    partial_gradient: bool = False,
) -> nn.Parameter:
    """An uninitialised parameter: this rank's part of a tensor of the given full shape.

    Args:
        shape: Shape of the unsharded tensor.
        tp: The tensor-parallel group.
        role: What the parameter is to the model; kept as `parameter.role` and never looked at here.
        dim: See `Sharding`.
        partial_gradient: See `Sharding`; a group of one has no parts.
    """
    local = list(shape)
    if dim is not None:
        local[dim] = tp.share(local[dim])
    parameter = nn.Parameter(torch.empty(local))
    sharding = Sharding(shape=shape, dim=dim, partial_gradient=partial_gradient and tp.size > 1)
    parameter.sharding = sharding  # type: ignore[attr-defined]
    parameter.role = role  # type: ignore[attr-defined]
    # DeepSpeed reads this when it sums gradient norms: whole tensors count once, parts count on every rank.
    parameter.tensor_model_parallel = dim is not None  # type: ignore[attr-defined]
    return parameter


def sharding_of(parameter: Tensor) -> Sharding:
    """The sharding that `new_parameter` recorded."""
    sharding = getattr(parameter, "sharding", None)
    assert isinstance(sharding, Sharding), "the parameter was not made by new_parameter"
    return sharding


def local_part(full: Tensor, sharding: Sharding, tp: TensorParallel) -> Tensor:
    """This rank's part of a full tensor, as a view."""
    if sharding.dim is None:
        return full
    length = tp.share(full.shape[sharding.dim])
    return full.narrow(sharding.dim, tp.rank * length, length)
