"""In which order samples are drawn from weighted sources.

Two sources: after p samples the first has round(p * share), halves up, so every prefix is within 1/2 and any window,
being the difference of two prefixes, is within one sample of the exact share, whatever the weights.

More, whose weights have a common denominator up to `LONGEST_PERIOD`: an order with that period in which the count of
each of K sources is within 1 - 1 / (2K - 2) of its exact share after any number of samples: the best bound there is
(Tijdeman, "The chairman assignment problem", 1980). Any window is then within two samples; for three or more sources
and general weights no order at all keeps every window within one.

More, of other weights: a Huffman tree of pairs, each of which shares its draws as two sources do. The error of a pair
is passed on in proportion to the share in it, so a window is off by less than the sum of weight / pair weight over the
pairs above a source but the topmost, plus one. Pairs grow at least as the Fibonacci numbers on the way up, so that is
less than 1 + 1 + 1/2 + 1/3 + 1/5 + ... = 3.36 for any number of sources, less than 2 for three, and half of it for a
prefix. All of it is in exact integers: nothing drifts, however long the run.
"""

import functools
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST_PERIOD = 1 << 16
_INT64_MAX = (1 << 63) - 1


def whole_weights(weights: Sequence[float | Fraction]) -> list[int]:
    """Return the smallest integers in the proportions of weights, taken as the decimals they are written as."""
    exact = [weight if isinstance(weight, Fraction) else Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    common = math.gcd(*whole)
    return [weight // common for weight in whole]


@functools.lru_cache(maxsize=16)
def _period_order(counts: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Spread counts[k] draws of each source k evenly over sum(counts) slots.

    Returns:
        The source of each slot and the number of earlier slots with the same source, both of shape (sum(counts),).
    """
    slots = sum(counts)
    drawn = [source for source, count in enumerate(counts) if count]
    # The bound as a fraction near / whole. Draw j of a source may come at the first slot that keeps the source at
    # most that far ahead, and must come before it falls further behind; serving the most urgent first always works.
    whole = 2 * len(drawn) - 2
    near = whole - 1

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


class _Pairs:
    """A Huffman tree over the sources: node k < K is source k, any later one a pair of earlier nodes."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.sources = len(weights)
        self.weights = list(weights)
        self.children: dict[int, tuple[int, int]] = {}
        queue = [(weight, number) for number, weight in enumerate(weights) if weight]
        heapq.heapify(queue)
        while len(queue) > 1:
            (low, second), (high, first) = heapq.heappop(queue), heapq.heappop(queue)
            self.children[len(self.weights)] = (first, second)
            heapq.heappush(queue, (low + high, len(self.weights)))
            self.weights.append(low + high)
        self.root = queue[0][1]

    def first_share(self, node: int, draws: Any) -> Any:
        """How many of the first `draws` (integers or an array of them) of a pair go to the first of it."""
        weight, total = self.weights[self.children[node][0]], self.weights[node]
        # Whole periods apart: the product of what is left and a weight is below total ** 2, however far the run is.
        periods, rest = draws // total, draws % total
        return periods * weight + (2 * rest * weight + total) // (2 * total)

    def _exact(self, node: int, draws: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Python's integers are exact but slow and large: 64 bits do where no intermediate of `first_share` of draws or
        # draws + 1 can exceed them. Draws and weights shrink on the way down, so what fits goes on to fit.
        last, total = int(draws.max()) + 1, self.weights[node]
        fits = last <= _INT64_MAX and (2 * min(last, total) + 1) * total <= _INT64_MAX
        return draws.astype(np.int64 if fits else object, copy=False)

    def locate(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        sources, ranks = np.empty_like(positions), np.empty_like(positions)
        to_do: list[tuple[int, Any, Any]] = [(self.root, np.arange(len(positions)), positions)]
        while to_do:
            node, where, draws = to_do.pop()
            if node < self.sources:
                sources[where], ranks[where] = node, draws
            elif len(where):
                first, second = self.children[node]
                draws = self._exact(node, draws)
                before = self.first_share(node, draws)
                taken = (self.first_share(node, draws + 1) > before).astype(bool)
                to_do.append((first, where[taken], before[taken]))
                to_do.append((second, where[~taken], (draws - before)[~taken]))
        return sources, ranks

    def counts(self, position: int) -> list[int]:
        found = [0] * self.sources
        to_do = [(self.root, position)]
        while to_do:
            node, draws = to_do.pop()
            if node < self.sources:
                found[node] = draws
            else:
                first, second = self.children[node]
                share = self.first_share(node, draws)
                to_do += [(first, share), (second, draws - share)]
        return found


class Pattern:
    """The order of draws for given weights: a pure function of the position, with nothing stored per sample."""

    def __init__(self, weights: Sequence[float | Fraction]) -> None:
        """Take weights as the decimals they are written as; they need not add up to 1, at least one is positive."""
        self._weights = whole_weights(weights)
        self._period = sum(self._weights)
        self._pairs: _Pairs | None = None
        if sum(weight > 0 for weight in self._weights) < 3 or self._period > LONGEST_PERIOD:
            self._pairs = _Pairs(self._weights)

    def locate(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the source of each position (>= 0) and how many earlier positions have the same source."""
        positions = np.asarray(positions, dtype=np.int64)
        if self._pairs is not None:
            return self._pairs.locate(positions)
        periods, slots = positions // self._period, positions % self._period
        order, rank = _period_order(tuple(self._weights))
        sources = order[slots]
        return sources, rank[slots] + periods * np.array(self._weights, dtype=np.int64)[sources]

    def counts(self, position: int) -> npt.NDArray[np.int64]:
        """Return how many of the first `position` samples come from each source, shape (sources,)."""
        if self._pairs is not None:
            return np.array(self._pairs.counts(position), dtype=np.int64)
        periods, slot = divmod(position, self._period)
        order, _ = _period_order(tuple(self._weights))
        before = periods * np.array(self._weights, dtype=np.int64)
        return before + np.bincount(order[:slot], minlength=len(self._weights))
