"""The change of attention logits from one checkpoint to the next, split exactly into where it comes from.

docs/analysis.md has the derivation.
"""

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

PARTS = ("weights", "features", "interaction")

SMALLEST_CHANGE = 1e-5
"""Of the logits' norm. A smaller change has too few digits in fp64 for the error to be measured by it."""

_BLOCK_ELEMENTS = 2**18
# What the rows of the Gram matrix are: the whole change, its parts, what they leave of it, the logits after it.
_TOTAL, _FIRST_PART, _ERROR, _AFTER = 0, 1, 4, 5


class Corners(NamedTuple):
    """Queries or keys (B, heads, S, D) as they meet, of the features and the weights of two checkpoints a and b.

    Attributes:
        before: Of a.
        weights: Features of a, weights of b.
        features: Features of b, weights of a.
        after: Of b.
    """

    before: Tensor
    weights: Tensor
    features: Tensor
    after: Tensor

    def differences(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those before, and what the weights, the features and both together add to them; the sum is those after."""
        both = (self.after - self.features) - (self.weights - self.before)
        return self.before, self.weights - self.before, self.features - self.before, both


@dataclass(frozen=True)
class Decomposition:
    """The change of the logits of some heads.

    Attributes:
        gram: (heads, 6, 6) fp64: inner products, over all visible entries, of the whole change, its three parts, what
            the parts leave of it, and the logits after it.
        entries: Visible entries of a head.
    """

    gram: Tensor
    entries: int

    def together(self) -> "Decomposition":
        """All heads as one."""
        return Decomposition(self.gram.sum(0, keepdim=True), self.entries * len(self.gram))

    def root_mean_squares(self) -> dict[str, Tensor]:
        """Of the whole change, called total, and of its parts: (heads,)."""
        sizes = (self.gram.diagonal(dim1=1, dim2=2) / self.entries).sqrt()
        return {name: sizes[:, index] for index, name in enumerate(("total", *PARTS))}

    def shares(self) -> dict[str, Tensor]:
        """<part, whole> / <whole, whole>, with its sign, (heads,); not a number where nothing has changed."""
        row = self.gram[:, _TOTAL]
        return {name: row[:, index] / row[:, _TOTAL] for index, name in enumerate(PARTS, _FIRST_PART)}

    def closure(self) -> float:
        """|whole - sum of the parts| / |whole|, of all heads; see `SMALLEST_CHANGE`."""
        sizes = self.together().gram[0].diagonal().sqrt()
        return float(sizes[_ERROR] / torch.maximum(sizes[_TOTAL], SMALLEST_CHANGE * sizes[_AFTER]))


def decompose(
    query: Corners, key: Corners, after: tuple[Tensor, Tensor], documents: Tensor | None = None
) -> Decomposition:
    """Split S_b - S_a, where S = q k^T / sqrt(D) over what a token sees, in blocks of rows.

    The parts come from the differences of queries and keys, in which S is bilinear. The whole comes from logits: those
    after from `after`, so that it is known whether the corners are of the model.

    Args:
        query: (B, heads, S, D), fp64.
        key: (B, kv heads, S, D), fp64.
        after: Queries and keys as b's own forward pass has them.
        documents: Positions (B, S), 0 at the first token of each document, where documents do not see each other.
    """
    batch, heads, length, width = query.before.shape
    scale = 1 / sqrt(width)
    q, q_w, q_x, q_xw = (scale * part for part in query.differences())
    k, k_w, k_x, k_xw = key.differences()
    # Each part is a sum of products: one product of what stands side by side.
    sides = [
        (scale * after[0], after[1]),
        (scale * query.before, key.before),
        (torch.cat((q_w, q + q_w), -1), torch.cat((k, k_w), -1)),
        (torch.cat((q_x, q + q_x), -1), torch.cat((k, k_x), -1)),
        (torch.cat((q_xw, q + q_w + q_x, q_w, q_x), -1), torch.cat((k + k_w + k_x + k_xw, k_xw, k_x, k_w), -1)),
    ]
    number = torch.zeros(batch, length) if documents is None else (documents == 0).cumsum(1)
    gram, entries = torch.zeros(heads, 6, 6, dtype=torch.float64, device=q.device), 0
    rows = max(1, _BLOCK_ELEMENTS // (batch * heads * length))
    for first in range(0, length, rows):
        end = min(length, first + rows)
        seen = number[:, first:end, None] == number[:, None, :end]
        seen = seen.to(q.device) & torch.ones(end - first, end, dtype=torch.bool, device=q.device).tril(first)
        entries += int(seen.sum())
        # The query heads of a key head share one product.
        new, old, *parts = (
            (left[:, :, first:end].reshape(batch, right.shape[1], -1, right.shape[-1]) @ right[:, :, :end].mT)
            .view(batch, heads, end - first, end)
            .mul_(seen.unsqueeze(1))
            for left, right in sides
        )
        whole = new - old
        vectors = torch.stack((whole, *parts, whole - sum(parts), new), dim=2).flatten(3)
        gram += (vectors @ vectors.mT).sum(0)
    return Decomposition(gram, entries)
