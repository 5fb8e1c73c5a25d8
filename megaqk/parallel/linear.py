"""Column- and row-parallel linear layers (Shoeybi et al., arXiv 1909.08053).

A column-parallel layer may hold several weights that read one input (query, key and value; gate and up). Each is a
parameter of its own, and all share one gather of the input and one reduction of its gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import megaqk.parallel.operators  # noqa: F401  # registers torch.ops.megaqk
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.tensor_parallel import TensorParallel


class _ColumnParallel(torch.autograd.Function):
    """y_i = x W_i^T + b_i for every i, where x is whole (or sequence-sharded) and W_i, b_i are column shards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str, sequence: bool, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[0::2], parameters[1::2]
        ctx.group, ctx.sequence = group, sequence
        ctx.biased = [bias is not None for bias in biases]
        ctx.save_for_backward(x, *weights)
        return tuple(torch.ops.megaqk.column_forward(x, weights, biases, group, sequence))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        grad_input, *rest = torch.ops.megaqk.column_backward(grads, x, weights, ctx.group, ctx.sequence)
        results: list[Tensor | None] = []
        for grad, grad_weight, biased in zip(grads, rest, ctx.biased, strict=True):
            results += [grad_weight, grad.flatten(0, -2).sum(0) if biased else None]
        return grad_input, None, None, *results


class _RowParallel(torch.autograd.Function):
    """The sum over the group of x W^T, where x and W are shards of the input features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: str, sequence: bool) -> Tensor:
        ctx.group, ctx.sequence = group, sequence
        ctx.save_for_backward(x, weight)
        return torch.ops.megaqk.row_forward(x, weight, group, sequence)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        if ctx.sequence:
            grad = torch.ops.megaqk.gather_sequence(grad, ctx.group)
        return grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2), None, None


def column_parallel_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], tp: TensorParallel
) -> tuple[Tensor, ...]:
    """Multiply one input by several column-sharded weights.

    Args:
        x: (B, S, H), or (B, S / size, H) under sequence parallelism.
        weights: Shards (out_i / size, H).
        biases: Shards (out_i / size) or None.
        tp: The tensor-parallel group.

    Returns:
        (B, S, out_i / size) for each weight.
    """
    if tp.size == 1:
        return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
    pairs = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    return _ColumnParallel.apply(x, tp.name, tp.sequence, *pairs)  # type: ignore[no-any-return, no-untyped-call]


class Output(NamedTuple):
    """What a linear layer computes.

    Attributes:
        width: Output features of the unsharded layer.
        weight: Role of its weight; see `new_parameter`.
        bias: Role of its bias.
    """

    width: int
    weight: object = None
    bias: object = None


class ColumnParallelLinear(nn.Module):
    """Linear layers that read one input and are split by output feature.

    Args:
        in_features: Input width.
        outputs: The layers by name; their parameters are called `<name>_weight` and `<name>_bias`.
        bias: Whether the layers have biases.
        tp: The tensor-parallel group.
    """

    def __init__(self, in_features: int, outputs: Mapping[str, Output], *, bias: bool, tp: TensorParallel) -> None:
        super().__init__()
        self.names = tuple(outputs)
        self.tp = tp
        for name, (width, weight_role, bias_role) in outputs.items():
            weight = new_parameter((width, in_features), tp, role=weight_role, dim=0)
            self.register_parameter(f"{name}_weight", weight)
            self.register_parameter(
                f"{name}_bias", new_parameter((width,), tp, role=bias_role, dim=0) if bias else None
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (B, S, H) to one (B, S, out / size) for each name, in order."""
        weights = [getattr(self, f"{name}_weight") for name in self.names]
        biases = [getattr(self, f"{name}_bias") for name in self.names]
        return column_parallel_linear(x, weights, biases, self.tp)


class RowParallelLinear(nn.Module):
    """A linear layer split by input feature, whose partial outputs are summed over the group.

    Args:
        in_features: Full input width; each rank gets its share.
        output: What it computes.
        bias: Whether to add a bias, once, after the sum.
        tp: The tensor-parallel group.
    """

    def __init__(self, in_features: int, output: Output, *, bias: bool, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = new_parameter((output.width, in_features), tp, role=output.weight, dim=1)
        # Under sequence parallelism each rank adds the bias to its own tokens only.
        self.bias = new_parameter((output.width,), tp, role=output.bias, partial_gradient=tp.sequence) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, in / size) to (B, S, out), or (B, S / size, out) under sequence parallelism."""
        if self.tp.size == 1:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = _RowParallel.apply(x, self.weight, self.tp.name, self.tp.sequence)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias
