"""Vocabulary-parallel embedding and head.

Rows at and beyond the number of real tokens are padding: no token indexes them, and the loss leaves them out, so
they can neither be predicted nor learned. The head multiplies them all the same, which keeps its products aligned.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.parallel.collectives import reduce_output
from megaqk.parallel.linear import column_parallel_linear
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.tensor_parallel import TensorParallel


def local_tokens(tokens: int, rows: int, tp: TensorParallel) -> int:
    """Of this rank's share of `rows`, those that belong to one of `tokens`."""
    share = tp.share(rows)
    return min(max(tokens - tp.rank * share, 0), share)


def look_up(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows (..., H) of a table by ids (...).

    Of the two ways to say this, CUDA adds the gradients of an embedding in any order, of which torch does not warn.
    """
    return weight[ids] if torch.are_deterministic_algorithms_enabled() else F.embedding(ids, weight)


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
        self.tokens = local_tokens(tokens, rows, tp)
        self.weight = new_parameter((rows, hidden_size), tp, role=role, dim=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up (B, S) token ids: (B, S, H), or (B, S / size, H) under sequence parallelism."""
        if self.tp.size == 1:
            return look_up(tokens, self.weight)
        local = tokens - self.first
        elsewhere = (local < 0) | (local >= self.rows)
        rows = look_up(local.masked_fill(elsewhere, 0), self.weight)
        return reduce_output(rows.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.tp)

    def logits(self, hidden: Tensor) -> Tensor:
        """This rank's logits (B, S, rows), padding last, of the residual stream (B, S, H) or (B, S / size, H)."""
        return column_parallel_linear(hidden, (self.weight,), (None,), self.tp)[0]
