"""What a pass of the model shows of each block."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from megaqk.model.taps import Taps
from megaqk.probing.attention_statistics import AttentionStatistics

EnergyKind = Literal["attention_residual", "attention_write", "ffn_residual", "ffn_write"]


class BlockStatistics:
    """Attention and energies of the blocks of one process, summed over the micro-batches that pass by.

    Attributes:
        attention: By layer.
        energies: Sums of squares of what `Taps` shows, fp64 scalars, by kind and layer.
    """

    def __init__(self) -> None:
        self.attention: dict[int, AttentionStatistics] = {}
        self.energies: dict[tuple[EnergyKind, int], Tensor] = {}
        self._documents: dict[int, Tensor] = {}
        self._queries: dict[int, Tensor] = {}

    @contextmanager
    def watching(self, taps: Taps) -> Iterator[None]:
        """Add up what passes in a block of code, in which nothing is trained."""
        with ExitStack() as stack:
            stack.enter_context(taps.watching("documents", self._documents.__setitem__))
            stack.enter_context(taps.watching("query", self._queries.__setitem__))
            stack.enter_context(taps.watching("key", self._add_attention))
            for kind in get_args(EnergyKind):
                stack.enter_context(taps.watching(kind, partial(self._add_energy, kind)))
            yield

    def _add_attention(self, layer: int, key: Tensor) -> None:
        statistics = self.attention.setdefault(layer, AttentionStatistics())
        statistics.add(self._queries.pop(layer), key, self._documents.pop(layer, None))

    def _add_energy(self, kind: EnergyKind, layer: int, activation: Tensor) -> None:
        # In fp64: sums of millions of squares in fp32 are off by 1e-4.
        square = torch.linalg.vector_norm(activation, dtype=torch.float64).square()
        self.energies[kind, layer] = self.energies.get((kind, layer), 0) + square
