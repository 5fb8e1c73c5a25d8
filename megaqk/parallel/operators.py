"""The products of tensor parallelism with their collectives, as operators that `torch.compile` does not look into.

Inside, a collective runs while a product is computed, and a gathered input is thrown away and gathered again; a
compiler that saw both would undo both. Groups go by name, since an operator takes no communicator.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.nn import functional as F

from megaqk.parallel.collectives import start_gather_sequence, start_reduce_scatter_sequence

_library = torch.library.Library("megaqk", "DEF")  # type: ignore[no-untyped-call]


def _operator(schema: str, shapes: Callable[..., object]) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Register a function as `torch.ops.megaqk.<name>`; `shapes` makes empty results for the compiler."""

    def register(function: Callable[..., object]) -> Callable[..., object]:
        _library.define(schema)  # type: ignore[no-untyped-call]
        name = schema.partition("(")[0]
        _library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"megaqk::{name}", shapes, lib=_library)
        return function

    return register


def _group(name: str) -> dist.ProcessGroup:
    return _resolve_process_group(name)  # type: ignore[arg-type]  # its own alias of str


def _length(x: Tensor, group: str, sequence: bool) -> int:
    """Of the whole sequence."""
    return x.shape[1] * (_group(group).size() if sequence else 1)


@_operator(
    "column_forward(Tensor x, Tensor[] weights, Tensor?[] biases, str group, bool sequence) -> Tensor[]",
    lambda x, weights, biases, group, sequence: [
        x.new_empty((x.shape[0], _length(x, group, sequence), weight.shape[0])) for weight in weights
    ],
)
def column_forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], group: str, sequence: bool
) -> list[Tensor]:
    """(B, S, H), gathered from (B, S / size, H) under sequence parallelism, by each (out_i / size, H) weight."""
    full = start_gather_sequence(x, _group(group)).wait() if sequence else x
    return [F.linear(full, w, b) for w, b in zip(weights, biases, strict=True)]


@_operator(
    "column_backward(Tensor[] grads, Tensor x, Tensor[] weights, str group, bool sequence) -> Tensor[]",
    lambda grads, x, weights, group, sequence: [x.new_empty(x.shape), *(w.new_empty(w.shape) for w in weights)],
)
def column_backward(
    grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], group: str, sequence: bool
) -> list[Tensor]:
    """The gradients of the input, summed over the group, and of each weight."""
    # The gathered input is not kept over the forward pass; fetch it again while the input gradient is computed.
    gather = start_gather_sequence(x, _group(group)) if sequence else None
    # Not reshape(-1, ...), which cannot infer a size where a rank holds padding rows only and has no columns.
    flat = [grad.flatten(0, -2) for grad in grads]
    grad_input = flat[0] @ weights[0]
    for grad, weight in zip(flat[1:], weights[1:], strict=True):
        grad_input.addmm_(grad, weight)
    grad_input = grad_input.view(*grads[0].shape[:-1], -1)
    # The reduction of the input gradient runs while the weight gradients are computed.
    scatter = start_reduce_scatter_sequence(grad_input, _group(group)) if sequence else None
    work = None if sequence else dist.all_reduce(grad_input, group=_group(group), async_op=True)
    full = (x if gather is None else gather.wait()).flatten(0, -2)
    grad_weights = [grad.t() @ full for grad in flat]
    if work is not None:
        work.wait()
    return [grad_input if scatter is None else scatter.wait(), *grad_weights]


@_operator(
    "row_forward(Tensor x, Tensor weight, str group, bool sequence) -> Tensor",
    lambda x, weight, group, sequence: x.new_empty(
        (x.shape[0], x.shape[1] // (_group(group).size() if sequence else 1), weight.shape[0])
    ),
)
def row_forward(x: Tensor, weight: Tensor, group: str, sequence: bool) -> Tensor:
    """(B, S, in / size) by (out, in / size), summed over the group: (B, S, out), or (B, S / size, out)."""
    y = F.linear(x, weight)
    if sequence:
        return start_reduce_scatter_sequence(y, _group(group)).wait()
    dist.all_reduce(y, group=_group(group))
    return y


@_operator(
    "gather_sequence(Tensor x, str group) -> Tensor",
    lambda x, group: x.new_empty((x.shape[0], _length(x, group, True), *x.shape[2:])),
)
def gather_sequence(x: Tensor, group: str) -> Tensor:
    """(B, S / size, H) as (B, S, H)."""
    return start_gather_sequence(x, _group(group)).wait()
