"""In which order samples are drawn from weighted sources.

After any number p of samples, the count of each of K sources is within 1 - 1 / (2K - 2) of its exact share of p: the
best bound there is (Tijdeman, "The chairman assignment problem", 1980). Any window, being the difference of two such
prefixes, is then within one sample of its exact share for two sources and within two for more; for three or more
sources and general weights no order at all keeps every window within one.

The order has a period: the common denominator of the weights, where that is small, else a block of fixed length whose
counts differ by rounding from block to block (where a count may be off by one more), so that nothing drifts however
long the run.
"""

import functools
import heapq
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

LONGEST_PERIOD = 1 << 16


@functools.lru_cache(maxsize=16)
def _block_order(counts: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Spread counts[k] draws of each source k evenly over sum(counts) slots.

    Returns:
        The source of each slot and the number of earlier slots with the same source, both of shape (sum(counts),).
    """
    slots = sum(counts)
    drawn = [source for source, count in enumerate(counts) if count]
    # The bound as a fraction near / whole. Draw j of a source may come at the first slot that keeps the source at
    # most that far ahead, and must come before it falls further behind; serving the most urgent first always works.
    whole = max(2 * len(drawn) - 2, 1)
    near = whole - 1 if len(drawn) > 1 else whole

    def window(source: int, draw: int) -> tuple[int, int]:
        first = -(-((draw + 1) * whole - near) * slots // (counts[source] * whole)) - 1
        return max(first, 0), (draw * whole + near) * slots // (counts[source] * whole)

    to_come = [(*window(source, 0), source, 0) for source in drawn]
    heapq.heapify(to_come)
    urgent: list[tuple[int, int, int]] = []
    sources = np.empty(slots, dtype=np.int64)
    ranks = np.empty(slots, dtype=np.int64)
    for slot in range(slots):
        while to_come and to_come[0][0] <= slot:
            _, last, source, draw = heapq.heappop(to_come)
            heapq.heappush(urgent, (last, source, draw))
        last, source, draw = heapq.heappop(urgent)
        assert slot <= last, "Tijdeman's bound can always be kept"
        sources[slot], ranks[slot] = source, draw
        if draw + 1 < counts[source]:
            heapq.heappush(to_come, (*window(source, draw + 1), source, draw + 1))
    return sources, ranks


class Pattern:
    """The order of draws for given weights: a pure function of the position, with nothing stored per sample."""

    def __init__(self, weights: Sequence[float | Fraction]) -> None:
        """Take weights as the decimals they are written as; they need not add up to 1, at least one is positive."""
        exact = [weight if isinstance(weight, Fraction) else Fraction(repr(weight)) for weight in weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        common = math.gcd(*whole)
        self._weights = [weight // common for weight in whole]
        self._total = sum(self._weights)
        self._period = min(self._total, LONGEST_PERIOD)

    def _before_block(self, block: int) -> list[int]:
        # Rounding the running sums, rather than each share, makes the counts add up.
        if self._period == self._total:
            return [block * weight for weight in self._weights]
        slots, cumulative, before = block * self._period, 0, [0]
        for weight in self._weights:
            cumulative += weight
            before.append((2 * slots * cumulative + self._total) // (2 * self._total))
        return [high - low for low, high in itertools.pairwise(before)]

    def _block(self, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
        before, after = self._before_block(block), self._before_block(block + 1)
        counts = tuple(high - low for low, high in zip(before, after, strict=True))
        return *_block_order(counts), before

    def locate(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the source of each position (>= 0) and how many earlier positions have the same source."""
        positions = np.asarray(positions, dtype=np.int64)
        blocks, slots = positions // self._period, positions % self._period
        sources, ranks = np.empty_like(slots), np.empty_like(slots)
        if self._period == self._total:
            # All blocks are alike: one look-up serves any positions.
            order, rank, _ = self._block(0)
            sources = order[slots]
            ranks = rank[slots] + blocks * np.array(self._weights, dtype=np.int64)[sources]
            return sources, ranks
        for block in np.unique(blocks):
            chosen = blocks == block
            order, rank, before = self._block(int(block))
            sources[chosen] = order[slots[chosen]]
            ranks[chosen] = rank[slots[chosen]] + np.array(before, dtype=np.int64)[sources[chosen]]
        return sources, ranks

    def counts(self, position: int) -> npt.NDArray[np.int64]:
        """Return how many of the first `position` samples come from each source, shape (sources,)."""
        block, slot = divmod(position, self._period)
        order, _, before = self._block(block)
        return np.array(before, dtype=np.int64) + np.bincount(order[:slot], minlength=len(self._weights))
