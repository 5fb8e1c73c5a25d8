"""A global batch is the same whatever the topology, and documents in it can be kept apart."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from megaqk.parallel.cross_entropy import IGNORE_INDEX
from megaqk.training.batches import RankBatches

EOD = 9


class CountingStream:
    """Sample p is p * 100 + (0, 1, 2, 3, 4)."""

    num_samples, num_tokens, sequence_length = 10**6, 10**7, 4

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return positions[:, None] * 100 + np.arange(5)

    def token_blocks(self) -> Iterator[npt.NDArray[np.integer[Any]]]:
        return iter(())


class FixedStream(CountingStream):
    """One sample with two ends of documents."""

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        del positions
        return np.array([[3, EOD, 4, EOD, 5]])


@pytest.mark.parametrize(("micro_batch", "data_size"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 3), (12, 1)])
def test_every_topology_reads_the_same_global_batch(micro_batch: int, data_size: int) -> None:
    first, global_batch = 24, 12
    seen = []
    for data_rank in range(data_size):
        batches = RankBatches(CountingStream(), micro_batch=micro_batch, data_rank=data_rank, data_size=data_size).read(
            first, global_batch // (micro_batch * data_size)
        )
        for (inputs, positions), labels in batches:
            assert inputs.shape == labels.shape == (micro_batch, 4)
            assert positions.tolist() == [[0, 1, 2, 3]] * micro_batch
            assert torch.equal(inputs + 1, labels)
            seen += (inputs[:, 0] // 100).tolist()
    assert sorted(seen) == list(range(first, first + global_batch))


@pytest.mark.parametrize(("micro_batch", "data_size"), [(1, 1), (3, 1), (2, 2), (4, 3), (16, 1)])
def test_every_sample_of_an_evaluation_counts_once(micro_batch: int, data_size: int) -> None:
    """Whatever fills up the last micro-batches has no labels, and every rank has as many of them."""
    samples, seen = 11, []
    for data_rank in range(data_size):
        batches = RankBatches(CountingStream(), micro_batch=micro_batch, data_rank=data_rank, data_size=data_size)
        read = list(batches.read(0, batches.micro_batches(samples), samples))
        assert len(read) == -(-samples // (micro_batch * data_size))
        for (inputs, _), labels in read:
            assert inputs.shape == labels.shape == (micro_batch, 4)
            counts = labels[:, 0] != IGNORE_INDEX
            assert torch.equal(inputs[counts] + 1, labels[counts])
            assert (labels[~counts] == IGNORE_INDEX).all()
            seen += (inputs[counts, 0] // 100).tolist()
    assert sorted(seen) == list(range(samples))


def test_documents_are_kept_apart_on_request() -> None:
    batches = RankBatches(FixedStream(), micro_batch=1, data_rank=0, data_size=1, separate_at=EOD)
    ((tokens, positions), labels) = next(batches.read(0, 1))
    assert tokens.tolist() == [[3, EOD, 4, EOD]]
    assert positions.tolist() == [[0, 1, 0, 1]]
    assert labels.tolist() == [[EOD, IGNORE_INDEX, EOD, IGNORE_INDEX]]


def test_the_first_micro_batches_of_all_ranks_come_first() -> None:
    """An evaluation of a part of a global batch thus reads its beginning, whatever the topology."""
    for data_rank, expected in enumerate(([24, 25, 28, 29], [26, 27, 30, 31])):
        batches = RankBatches(CountingStream(), micro_batch=2, data_rank=data_rank, data_size=2).read(24, 2)
        assert [int(first) // 100 for (inputs, _), _ in batches for first in inputs[:, 0]] == expected
