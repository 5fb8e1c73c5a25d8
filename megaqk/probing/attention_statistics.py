"""How sharp the attention of each head is, without ever holding its S x S weights."""

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

BLOCK_ELEMENTS, BLOCK_ELEMENTS_ON_CPU = 2**24, 2**19
"""Logits that are held at once, for all samples and heads together; a row of them at least. A cache holds few."""


def logit_blocks(
    query: Tensor, key: Tensor, documents: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The logits query . key / sqrt(D), in fp32 or better, of a few rows at a time.

    Args:
        query: (B, H, S, D), as `Taps` shows it.
        key: (B, kv heads, S, D), likewise.
        documents: Positions (B, S), 0 at the first token of each document, where documents do not see each other.

    Yields:
        Logits (B, H, rows, S up to the last of them); what a token does not see of them (B, 1, rows, S); and how many
        it sees (B, rows).
    """
    batch, heads, length, width = query.shape
    precision = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(precision) / sqrt(width), key.to(precision)
    places = torch.arange(length, device=query.device)
    before = places.expand(batch, -1) if documents is None else documents  # tokens that each sees beside itself
    elements = BLOCK_ELEMENTS_ON_CPU if query.device.type == "cpu" else BLOCK_ELEMENTS
    rows = max(1, elements // (batch * heads * length))
    for first in range(0, length, rows):
        end = min(length, first + rows)
        # The query heads of a key head share one product.
        part = query[:, :, first:end].reshape(batch, key.shape[1], -1, width)
        logits = (part @ key[:, :, :end].mT).view(batch, heads, end - first, end)
        oldest = places[first:end] - before[:, first:end]
        columns = places[:end]
        seen = (columns <= places[first:end, None]) & (columns >= oldest.unsqueeze(-1))
        yield logits, ~seen.unsqueeze(1), before[:, first:end] + 1


@torch.no_grad()
def largest_logits(query: Tensor, key: Tensor, documents: Tensor | None = None) -> Tensor:
    """The largest logit of each head (H,), over the batch and all that its tokens see; see `logit_blocks`."""
    blocks = logit_blocks(query, key, documents)
    largest = [logits.masked_fill_(hidden, -torch.inf).amax((0, 2, 3)) for logits, hidden, _ in blocks]
    return torch.stack(largest).amax(0)


class AttentionStatistics:
    """Statistics of the attention of H heads over everything that was added, in fp32 or better.

    Logits are query . key / sqrt(D) of the tokens that a token sees: those up to itself, of its document. The first
    token of a document sees itself alone, so that its row says nothing of sharpness: entropy and largest probability
    leave it out. Nothing waits for the device.
    """

    def __init__(self) -> None:
        self._sums = self._largest = self._counts = torch.zeros(())

    def add(self, query: Tensor, key: Tensor, documents: Tensor | None = None) -> None:
        """Add a micro-batch; see `logit_blocks`."""
        for block in logit_blocks(query, key, documents):
            self._add_rows(*block)

    def _add_rows(self, logits: Tensor, hidden: Tensor, seen: Tensor) -> None:
        """Add rows (B, H, rows, S) of which `hidden` (B, 1, rows, S) does not count and `seen` (B, rows) do."""
        largest = logits.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
        shifted = (logits - largest).masked_fill_(hidden, 0)
        powers = shifted.exp().masked_fill_(hidden, 0)
        total = powers.sum(-1)
        # Taken from the largest logit, so that nothing cancels where one token has all.
        entropy = total.log() - (powers * shifted).sum(-1) / total
        several = (seen > 1).unsqueeze(1)
        logits = logits.masked_fill_(hidden, 0)
        sums = (
            entropy / seen.clamp(min=2).to(entropy.dtype).log().unsqueeze(1),
            several / total,
            logits.sum(-1, dtype=torch.float64),
            logits.square().sum(-1, dtype=torch.float64),
        )
        self._sums = self._sums + torch.stack([value.sum((0, 2), dtype=torch.float64) for value in sums])
        self._counts = self._counts + torch.stack([several.sum(), seen.sum()])
        top = largest.amax((0, 2, 3))
        self._largest = top if self._largest.dim() == 0 else torch.maximum(self._largest, top)

    def result(self) -> dict[str, Tensor]:
        """The statistics by name, each (H,) in fp64.

        Returns:
            - attention_entropy: Entropy of a token's attention over the logarithm of the number of tokens that it sees,
              in [0, 1]: 0 where one token has all, 1 where all have the same; mean over tokens.
            - attention_max_probability: Largest attention weight of a token, mean over tokens.
            - logit_std: Standard deviation of all logits.
            - logit_max: The largest.
        """
        entropy, probability, total, squares = self._sums
        rows, entries = self._counts
        mean = total / entries
        return {
            "attention_entropy": entropy / rows,
            "attention_max_probability": probability / rows,
            "logit_std": (squares / entries - mean.square()).clamp(min=0).sqrt(),
            "logit_max": self._largest.double(),
        }
