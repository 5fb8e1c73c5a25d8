"""Which samples a rank reads at a step."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megaqk.data.dataset import Dataset
from megaqk.model.batch import Stream, plain_positions
from megaqk.parallel.cross_entropy import IGNORE_INDEX


class RankBatches:
    """Micro-batches of one data-parallel rank.

    The global batch that starts at sample p holds samples p to p + global_batch - 1 of the stream, whatever the
    topology; micro-batch m of data rank d takes `micro_batch` of them from (m x data + d) x micro_batch on.

    Args:
        stream: The samples.
        micro_batch: Samples of a micro-batch.
        data_rank: This rank on the data axis.
        data_size: Size of the data axis.
        separate_at: The end-of-document id at which documents are kept apart; None lets them see each other.
    """

    def __init__(
        self,
        stream: Dataset,
        *,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        separate_at: int | None = None,
    ) -> None:
        self._stream = stream
        self._micro_batch = micro_batch
        self._data_rank = data_rank
        self._data_size = data_size
        self._separate_at = separate_at

    def read(self, first_sample: int, micro_batches: int, end: int | None = None) -> Iterator[tuple[Stream, Tensor]]:
        """Yield inputs and labels of the micro-batches of this rank's part of one global batch.

        Where there is an `end`, micro-batches that reach past it are filled up with samples whose labels do not count.
        """
        for index in range(micro_batches):
            start = first_sample + (index * self._data_size + self._data_rank) * self._micro_batch
            positions = np.arange(start, start + self._micro_batch)
            if end is None or positions[-1] < end:
                yield self._split(self._stream.read(positions))
                continue
            inputs, labels = self._split(self._stream.read(np.minimum(positions, end - 1)))
            yield inputs, labels.masked_fill(torch.from_numpy(positions >= end)[:, None], IGNORE_INDEX)

    def micro_batches(self, samples: int) -> int:
        """How many of them, alike for each data-parallel rank, hold so many samples."""
        return -(-samples // (self._micro_batch * self._data_size))

    def _split(self, samples: npt.NDArray[np.int64]) -> tuple[Stream, Tensor]:
        """Samples (micro_batch, S + 1) as token ids with their positions, and labels."""
        inputs = np.ascontiguousarray(samples[:, :-1])
        labels = np.ascontiguousarray(samples[:, 1:])
        if self._separate_at is None:
            tokens = torch.from_numpy(inputs)
            return (tokens, plain_positions(tokens)), torch.from_numpy(labels)
        positions, scored = document_layout(inputs, self._separate_at)
        # Not in place: inputs and labels may be views of the same samples.
        labels = np.where(scored, labels, IGNORE_INDEX)
        return (torch.from_numpy(inputs), torch.from_numpy(positions)), torch.from_numpy(labels)


def document_layout(inputs: npt.NDArray[np.int64], eod_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where the documents lie in packed inputs (B, S): read off the tokens, as each ends with its end of document.

    Running each document apart gives the same hidden states and losses as running the batch with these positions,
    attention within documents only, and the loss only of the labels that count.

    Returns:
        The place of each token in its document (B, S), counted from the row's start in what a row begins within; and
        whether its label counts (B, S), which that of the last token of a document does not: nothing announces it.
    """
    ends = inputs == eod_id
    starts = np.zeros_like(ends)
    starts[:, 1:] = ends[:, :-1]
    index = np.arange(inputs.shape[1], dtype=np.int64)
    begun = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return index - begun, ~ends
