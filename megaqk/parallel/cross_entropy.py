"""Vocabulary-parallel cross entropy that never holds all logits in fp32.

Loss and gradient are computed a few tokens at a time; what is kept for the backward pass is the logits, in their own
dtype and memory, and three numbers a token.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megaqk.parallel.tensor_parallel import TensorParallel

IGNORE_INDEX = -100
"""A label that carries no loss."""

# Logits converted to fp32 at a time: within a CPU's cache, and few launches on a GPU (256 MiB).
_CHUNK_ON_CPU, _CHUNK = 1 << 18, 1 << 26


def _log_sum_exp(logits: Tensor) -> Tensor:
    return torch.logsumexp(logits.float(), dim=-1)


def _write_gradient(logits: Tensor, normaliser: Tensor, label: Tensor, here: Tensor, grad: Tensor) -> None:
    """Overwrite logits (N, V) with d loss / d logits = (softmax - one_hot(label)) x grad."""
    softmax = (logits.float() - normaliser.unsqueeze(1)).exp_()
    gradient = softmax.mul_(grad.unsqueeze(1))
    gradient.scatter_add_(1, label.unsqueeze(1), (-grad * here).unsqueeze(1))
    logits.copy_(gradient)


@cache
def _kernels(compiled: bool) -> tuple[Callable[[Tensor], Tensor], Callable[..., None]]:
    return (
        (torch.compile(_log_sum_exp), torch.compile(_write_gradient)) if compiled else (_log_sum_exp, _write_gradient)
    )


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Three numbers a token cross the group (Shoeybi et al., arXiv 1909.08053), never the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, first: int, tokens: int, tp: TensorParallel, compiled: bool
    ) -> Tensor:
        flat, local = logits.flatten(0, -2), labels.flatten() - first
        rows = flat[:, :tokens]
        here = (local >= 0) & (local < tokens)
        local = local.where(here, 0)
        log_sum_exp, _ = _kernels(compiled)
        ctx.chunk = max(1, (_CHUNK_ON_CPU if logits.device.type == "cpu" else _CHUNK) // max(1, tokens))
        if tokens:
            normaliser = torch.cat([log_sum_exp(part) for part in torch.split(rows, ctx.chunk)])
            target = rows.gather(1, local.unsqueeze(1)).squeeze(1).float() * here
        else:  # a rank that holds padding rows only
            normaliser = torch.full(local.shape, -torch.inf, device=logits.device)
            target = torch.zeros_like(normaliser)
        if tp.size > 1:
            highest = normaliser.clone()
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=tp.group)
            totals = torch.stack([(normaliser - highest).exp(), target])
            dist.all_reduce(totals, group=tp.group)
            normaliser, target = highest + totals[0].log(), totals[1]
        ctx.save_for_backward(flat, normaliser, local, here)
        ctx.shape, ctx.tokens, ctx.compiled = logits.shape, tokens, compiled
        return (normaliser - target).view_as(labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        flat, *saved = ctx.saved_tensors
        flat[:, ctx.tokens :].zero_()
        if ctx.tokens:
            _, write_gradient = _kernels(ctx.compiled)
            parts = (torch.split(x, ctx.chunk) for x in (flat[:, : ctx.tokens], *saved, grad.flatten()))
            for part in zip(*parts, strict=True):
                write_gradient(*part)
        return flat.view(ctx.shape), None, None, None, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, *, first: int, tokens: int, tp: TensorParallel, compiled: bool = False
) -> Tensor:
    """Loss of each token in fp32; 0 where the label is IGNORE_INDEX. The backward pass overwrites the logits.

    Args:
        logits: (B, S, columns) of this rank, in any floating dtype.
        labels: (B, S) token ids of the whole vocabulary.
        first: The id of this rank's first logit.
        tokens: Columns that are real tokens; those after them are padding and get a gradient of 0.
        tp: The tensor-parallel group.
        compiled: Whether to compile the elementwise work.

    Returns:
        (B, S), equal on every rank of the group.
    """
    losses: Tensor = _VocabParallelCrossEntropy.apply(logits, labels, first, tokens, tp, compiled)  # type: ignore[no-untyped-call]
    return losses.masked_fill(labels == IGNORE_INDEX, 0.0)
