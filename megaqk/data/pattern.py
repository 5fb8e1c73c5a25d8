"""In which order samples are drawn from weighted sources.

Two sources: after p samples the first has round(p * share), halves up, so every prefix is within 1/2 and any window,
being the difference of two prefixes, is within one sample of the exact share, whatever the weights.

More: a Huffman tree of pairs, each of which shares its draws as two sources do. The error of a pair is passed on in
proportion to the share in it, so a window is off by less than the sum of weight / pair weight over the pairs above a
source but the topmost, plus one. Pairs grow at least as the Fibonacci numbers on the way up, so that is less than
1 + 1 + 1/2 + 1/3 + 1/5 + ... = 3.36 for any number of sources, less than 2 for three, and half of it for a prefix.
All of it is in exact integers: nothing drifts, however long the run.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

_INT64_MAX = (1 << 63) - 1


def whole_weights(weights: Sequence[float | Fraction]) -> list[int]:
    """Return the smallest integers in the proportions of weights, taken as the decimals they are written as."""
    exact = [weight if isinstance(weight, Fraction) else Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    common = math.gcd(*whole)
    return [weight // common for weight in whole]


class Pattern:
    """The order of draws for given weights: a pure function of the position, with nothing stored per sample."""

    def __init__(self, weights: Sequence[float | Fraction]) -> None:
        """Take weights as the decimals they are written as; they need not add up to 1, at least one is positive."""
        # Node k < K of the tree is source k, any later one a pair of earlier nodes.
        self._weights = whole_weights(weights)
        self._num_sources = len(self._weights)
        self._pairs: dict[int, tuple[int, int]] = {}
        queue = [(weight, number) for number, weight in enumerate(self._weights) if weight]
        heapq.heapify(queue)
        while len(queue) > 1:
            (low, second), (high, first) = heapq.heappop(queue), heapq.heappop(queue)
            self._pairs[len(self._weights)] = (first, second)
            heapq.heappush(queue, (low + high, len(self._weights)))
            self._weights.append(low + high)
        self._root = queue[0][1]

    def _first_share(self, node: int, draws: Any) -> Any:
        """How many of the first `draws` (integers or an array of them) of a pair go to the first of it."""
        weight, total = self._weights[self._pairs[node][0]], self._weights[node]
        # Whole periods apart: the product of what is left and a weight is below total ** 2, however far the run is.
        periods, rest = draws // total, draws % total
        return periods * weight + (2 * rest * weight + total) // (2 * total)

    def _exact(self, node: int, draws: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Python's integers are exact but slow and large: 64 bits do where no intermediate of `_first_share` of draws
        # or draws + 1 can exceed them. Draws and weights shrink on the way down, so what fits goes on to fit.
        last, total = int(draws.max()) + 1, self._weights[node]
        fits = last <= _INT64_MAX and (2 * min(last, total) + 1) * total <= _INT64_MAX
        return draws.astype(np.int64 if fits else object, copy=False)

    def locate(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the source of each position (>= 0) and how many earlier positions have the same source."""
        positions = np.asarray(positions, dtype=np.int64)
        sources, ranks = np.empty_like(positions), np.empty_like(positions)
        to_do: list[tuple[int, Any, Any]] = [(self._root, np.arange(len(positions)), positions)]
        while to_do:
            node, where, draws = to_do.pop()
            if node < self._num_sources:
                sources[where], ranks[where] = node, draws
            elif len(where):
                first, second = self._pairs[node]
                draws = self._exact(node, draws)
                before = self._first_share(node, draws)
                taken = (self._first_share(node, draws + 1) > before).astype(bool)
                to_do.append((first, where[taken], before[taken]))
                to_do.append((second, where[~taken], (draws - before)[~taken]))
        return sources, ranks

    def counts(self, position: int) -> npt.NDArray[np.int64]:
        """Return how many of the first `position` samples come from each source, shape (sources,)."""
        found = np.zeros(self._num_sources, dtype=np.int64)
        to_do = [(self._root, position)]
        while to_do:
            node, draws = to_do.pop()
            if node < self._num_sources:
                found[node] = draws
            else:
                share = self._first_share(node, draws)
                to_do += zip(self._pairs[node], (share, draws - share), strict=True)
        return found
