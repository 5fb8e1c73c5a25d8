"""A seeded permutation of [0, n) that is computed, not stored.

A Feistel network permutes the smallest power of two >= n; an index that lands at or above n is sent through again
until it falls inside (cycle walking), which keeps the map a bijection of [0, n). The domain is less than 2n, so an
index needs fewer than two passes on average, whatever n is.
"""

import hashlib

import numpy as np
import numpy.typing as npt

NUM_ROUNDS = 8


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # The finalizer of splitmix64: every input bit reaches every output bit.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


class Permutation:
    """A pseudo-random bijection of [0, size), determined by `size` and `key`."""

    def __init__(self, size: int, *key: int | str) -> None:
        if not 1 <= size < 2**62:
            raise ValueError(f"size = {size}: must be in [1, 2**62)")
        self.size = size
        num_bits = max((size - 1).bit_length(), 2)
        # The two halves differ by at most one bit, so that the domain is the tightest power of two.
        self._low_bits = np.uint64(num_bits // 2)
        self._low_mask = np.uint64((1 << (num_bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)
        digest = hashlib.shake_256(repr((size, *key)).encode()).digest(8 * NUM_ROUNDS)
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def _pass(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        low, high = x & self._low_mask, x >> self._low_bits
        # Each round changes one half by a function of the other alone, and so can be undone.
        for even, odd in zip(self._round_keys[::2], self._round_keys[1::2], strict=True):
            low = low ^ (_mix(high + even) & self._low_mask)
            high = high ^ (_mix(low + odd) & self._high_mask)
        joined: npt.NDArray[np.uint64] = (high << self._low_bits) | low
        return joined

    def __call__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Map an array of indices in [0, size), of any shape, to their images in [0, size)."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.size):
            raise ValueError(f"indices must lie in [0, {self.size})")
        flat = self._pass(indices.astype(np.uint64).reshape(-1))
        outside = np.flatnonzero(flat >= np.uint64(self.size))
        while outside.size:
            flat[outside] = self._pass(flat[outside])
            outside = outside[flat[outside] >= np.uint64(self.size)]
        return flat.astype(np.int64).reshape(indices.shape)
