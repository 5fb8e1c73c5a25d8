"""Samples of a fixed length, packed across the documents of one part of a corpus."""

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megaqk.data.indexed import IndexedCorpus, data_path
from megaqk.data.permutation import Permutation
from megaqk.errors import UserError

_COUNT_BLOCK = 1 << 22
_SAMPLED_BLOCKS = 1000


class Dataset(Protocol):
    """An endless sequence of samples, each a pure function of its global position.

    Attributes:
        num_samples: Samples in one epoch; position p belongs to epoch p // num_samples.
        num_tokens: Tokens that one epoch is made from.
        sequence_length: Tokens a sample trains on; a sample holds one more, the last target.
    """

    num_samples: int
    num_tokens: int
    sequence_length: int

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at global positions (>= 0), shape (len(positions), sequence_length + 1)."""

    def token_blocks(self, *, at_most: int | None = None) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yield the tokens of one epoch in blocks of bounded size, or about `at_most` of them spread evenly over it."""


class PackedDataset:
    """The tokens [begin, end) of a corpus as samples (see `Dataset`); consecutive ones in file order share one token.

    Sample i is tokens[begin + i * sequence_length :][: sequence_length + 1], whatever documents it touches: no index
    is built, opened or kept. `shuffle_key` seeds the order of each epoch, None keeps file order; tokens are held
    against `vocab_size`, unless it is None.
    """

    def __init__(
        self,
        corpus: IndexedCorpus,
        begin: int,
        end: int,
        *,
        sequence_length: int,
        shuffle_key: tuple[int | str, ...] | None,
        vocab_size: int | None = None,
    ) -> None:
        self.sequence_length = sequence_length
        self.num_tokens = end - begin
        self.num_samples = samples_in(self.num_tokens, sequence_length)
        assert self.num_samples > 0, "the caller refuses parts too small for one sample"
        self._tokens = corpus.tokens[begin:end]
        # Row i of this view starts sequence_length tokens after row i - 1: rows overlap in memory, none is copied.
        self._rows = np.lib.stride_tricks.sliding_window_view(self._tokens, sequence_length + 1)[::sequence_length]
        self._shuffle_key = shuffle_key
        self._vocab_size = 2**63 if vocab_size is None else vocab_size
        self._name = data_path(corpus.prefix)

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at global positions; see `Dataset`."""
        epochs, rows = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        if self._shuffle_key is not None:
            for epoch in np.unique(epochs):
                chosen = epochs == epoch
                rows[chosen] = _epoch_order(self.num_samples, (*self._shuffle_key, int(epoch)))(rows[chosen])
        samples = self._rows[rows].astype(np.int64)
        # Cheap beside the copy above, and the alternative is an out-of-bounds read in some embedding kernel.
        if samples.size and (int(samples.max()) >= self._vocab_size or int(samples.min()) < 0):
            raise UserError(f"{self._name}: holds a token outside the vocabulary, [0, {self._vocab_size})")
        return samples

    def token_blocks(self, *, at_most: int | None = None) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yield the tokens of one epoch, or about `at_most` of them; see `Dataset`."""
        stride = size = _COUNT_BLOCK
        if at_most is not None and at_most < self.num_tokens:
            stride = -(-self.num_tokens // _SAMPLED_BLOCKS)
            size = max(at_most // _SAMPLED_BLOCKS, 1)
        for begin in range(0, self.num_tokens, stride):
            yield self._tokens[begin : begin + size]


@functools.lru_cache(maxsize=64)
def _epoch_order(num_samples: int, key: tuple[int | str, ...]) -> Permutation:
    return Permutation(num_samples, *key)


def samples_in(num_tokens: int, sequence_length: int) -> int:
    """Return how many overlapping samples of sequence_length + 1 tokens fit into `num_tokens`."""
    return max(num_tokens - 1, 0) // sequence_length
