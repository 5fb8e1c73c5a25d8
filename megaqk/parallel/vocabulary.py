"""Vocabulary-parallel embedding, head and cross entropy.

Rows at and beyond the number of real tokens are padding: no token indexes them, and the head leaves them out, so
they can neither be predicted nor learned.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from megaqk.parallel.collectives import reduce_output
from megaqk.parallel.linear import column_parallel_linear
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.tensor_parallel import TensorParallel

IGNORE_INDEX = -100
"""A label that carries no loss."""


class VocabParallelEmbedding(nn.Module):
    """An embedding table split by row, also usable as the output head.

    Args:
        rows: Rows of the whole table, divisible by the group size.
        tokens: Real tokens, at most `rows`.
        hidden_size: Width of a row.
        tp: The tensor-parallel group.
        role: Role of the table; see `new_parameter`.
    """

    def __init__(self, rows: int, tokens: int, hidden_size: int, *, tp: TensorParallel, role: object = None) -> None:
        super().__init__()
        self.tp = tp
        self.rows = tp.share(rows)
        self.first = tp.rank * self.rows
        self.local_tokens = min(max(tokens - self.first, 0), self.rows)
        self.weight = new_parameter((rows, hidden_size), tp, role=role, dim=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up (B, S) token ids: (B, S, H), or (B, S / size, H) under sequence parallelism."""
        if self.tp.size == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.first
        elsewhere = (local < 0) | (local >= self.rows)
        rows = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return reduce_output(rows.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.tp)

    def logits(self, hidden: Tensor) -> Tensor:
        """This rank's logits (B, S, local tokens) of the residual stream (B, S, H) or (B, S / size, H)."""
        weight = self.weight if self.local_tokens == self.rows else self.weight[: self.local_tokens]
        return column_parallel_linear(hidden, (weight,), (None,), self.tp)[0]


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Megatron's cross entropy: only three numbers a token cross the group, never the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, first: int, tp: TensorParallel) -> Tensor:
        scores = logits.float()
        width = scores.shape[-1]
        # A rank may hold padding rows only, and then has no logits.
        highest = scores.amax(-1) if width else scores.new_full(labels.shape, -torch.inf)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=tp.group)
        shifted = scores - highest.unsqueeze(-1)
        local = labels - first
        elsewhere = (local < 0) | (local >= width)
        local = local.masked_fill(elsewhere, 0)
        totals = scores.new_zeros((2, *labels.shape))
        if width:
            totals[0] = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill_(elsewhere, 0.0)
        exponentials = shifted.exp_()
        totals[1] = exponentials.sum(-1)
        dist.all_reduce(totals, group=tp.group)
        target, normaliser = totals[0], totals[1]
        ctx.save_for_backward(exponentials, normaliser, local, elsewhere)
        ctx.dtype = logits.dtype
        return normaliser.log() - target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        exponentials, normaliser, local, elsewhere = ctx.saved_tensors
        # d loss / d logits = (softmax - one_hot(label)) * grad, in the buffer of the exponentials.
        grad_logits = exponentials.mul_((grad / normaliser).unsqueeze(-1))
        if grad_logits.shape[-1]:
            target = -grad.masked_fill(elsewhere, 0.0)
            grad_logits.scatter_add_(-1, local.unsqueeze(-1), target.unsqueeze(-1))
        return grad_logits.to(ctx.dtype), None, None, None


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, *, first: int, tp: TensorParallel) -> Tensor:
    """Loss of each token in fp32; 0 where the label is IGNORE_INDEX.

    Args:
        logits: (B, S, local tokens) of this rank.
        labels: (B, S) token ids of the whole vocabulary.
        first: The id of this rank's first logit.
        tp: The tensor-parallel group.

    Returns:
        (B, S), equal on every rank of the group.
    """
    if tp.size == 1:
        scores = logits.flatten(0, 1).float()
        return F.cross_entropy(scores, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none").view_as(labels)
    losses: Tensor = _VocabParallelCrossEntropy.apply(logits, labels, first, tp)  # type: ignore[no-untyped-call]
    return losses.masked_fill(labels == IGNORE_INDEX, 0.0)
