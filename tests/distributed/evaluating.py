"""An evaluation of a few samples by an engine."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.distributed import driver

SAMPLES = 11
"""A prime: no batch size divides it."""


class Stream:
    """Samples that every rank can make."""

    num_samples, num_tokens, sequence_length = SAMPLES, SAMPLES * driver.LENGTH + 1, driver.LENGTH

    def __init__(self, tokens: int) -> None:
        self.samples = driver.batches(tokens).flatten(0, 1)[:SAMPLES]

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        samples: npt.NDArray[np.int64] = self.samples[torch.from_numpy(positions)].numpy()
        return samples


def mean_loss(engine: Any, tokens: int, micro_batch: int | None = None) -> float:
    """The mean loss of all samples, read once by the data-parallel ranks together."""
    from megaqk.training.batches import RankBatches

    size, place = micro_batch or engine.config.training.micro_batch_size, engine.world.coordinate
    stream: Any = Stream(tokens)
    batches = RankBatches(stream, micro_batch=size, data_rank=place.data, data_size=engine.world.data)
    rounds = batches.micro_batches(SAMPLES)
    return float(engine.evaluate(batches.read(0, rounds, SAMPLES), rounds)) / (SAMPLES * driver.LENGTH)
