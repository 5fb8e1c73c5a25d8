"""Which samples a rank reads at a step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from megaqk.data.stream import SampleStream


class RankBatches:
    """Micro-batches of one data-parallel rank.

    The global batch that starts at sample p holds samples p to p + global_batch - 1 of the stream, whatever the
    topology; micro-batch m of data rank d takes `micro_batch` of them from (m x data + d) x micro_batch on.

    Args:
        stream: The samples.
        micro_batch: Samples of a micro-batch.
        data_rank: This rank on the data axis.
        data_size: Size of the data axis.
    """

    def __init__(self, stream: SampleStream, *, micro_batch: int, data_rank: int, data_size: int) -> None:
        self._stream = stream
        self._micro_batch = micro_batch
        self._data_rank = data_rank
        self._data_size = data_size

    def read(self, first_sample: int, micro_batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield token ids and labels, both (micro_batch, S), of this rank's part of one global batch."""
        for index in range(micro_batches):
            start = first_sample + (index * self._data_size + self._data_rank) * self._micro_batch
            samples = torch.from_numpy(self._stream.read(np.arange(start, start + self._micro_batch)))
            yield samples[:, :-1].contiguous(), samples[:, 1:].contiguous()
