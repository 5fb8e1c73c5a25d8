"""The largest attention logit of each head, for a look from outside: no kernel says it."""

from math import sqrt

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 24
"""Logits in memory at a time, unless one row of all heads has more."""


@torch.no_grad()
def largest_logits(query: Tensor, key: Tensor, documents: Tensor | None = None) -> Tensor:
    """The largest of the logits that `core_attention` takes the softmax of, in blocks of rows.

    Args:
        query: (B, heads, S, D).
        key: (B, kv heads, S, D).
        documents: Positions (B, S) where documents do not see each other; see `core_attention`.

    Returns:
        (heads,) in fp32, over the batch and all entries that are looked at.
    """
    batch, heads, length, width = query.shape
    query, key = query.float(), key.float()
    number = None if documents is None else (documents == 0).cumsum(1)
    largest = query.new_full((heads,), -torch.inf)
    rows = max(1, BLOCK_ELEMENTS // (batch * heads * length))
    for first in range(0, length, rows):
        end = min(first + rows, length)
        # The query heads of a key head are rows of one product: keys are not repeated.
        block = query[:, :, first:end].reshape(batch, key.shape[1], -1, width)
        scores = (block @ key[:, :, :end].mT).view(batch, heads, end - first, end)
        hidden = torch.ones(end - first, end, dtype=torch.bool, device=query.device).triu(first + 1)
        if number is not None:
            hidden = (hidden | (number[:, first:end, None] != number[:, None, :end])).unsqueeze(1)
        largest = torch.maximum(largest, scores.masked_fill_(hidden, -torch.inf).amax((0, 2, 3)))
    return largest / sqrt(width)
