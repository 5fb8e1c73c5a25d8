"""Attention that looks at nothing: what a layer or a head would do without its pattern."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor


class UniformAttention:
    """The heads of one process that attend to all visible tokens alike. False while there are none."""

    def __init__(self) -> None:
        self._heads: dict[int, Sequence[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._heads)

    @contextmanager
    def replacing(self, layer: int, heads: Sequence[int]) -> Iterator[None]:
        """Replace the attention weights of some heads of a block by the uniform causal average for the time being.

        Args:
            layer: Global depth of the block.
            heads: Query heads, as this tensor-parallel rank counts its own.
        """
        self._heads[layer] = heads
        try:
            yield
        finally:
            del self._heads[layer]

    def applied(self, layer: int, query: Tensor) -> Tensor:
        """The queries (B, heads, S, D) of a block, zero in those heads: all their logits are 0, in every kernel."""
        if layer not in self._heads:
            return query
        query = query.clone()
        query[:, list(self._heads[layer])] = 0
        return query
