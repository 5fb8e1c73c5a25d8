"""Dropout masks as a function of the sample and the place.

A mask is drawn from a seed made of (run seed, number of the sample in the run, layer, site) and, where the activation
is split over the tensor-parallel group, the tensor rank. Replicated activations thus get one mask on every rank,
sharded ones get independent masks, recomputation repeats the mask it needs, a resumed run has no generator state to
restore, and no mask depends on how samples are divided into micro-batches and over data-parallel ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and its place."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class DropoutRng:
    """Knows which sample a layer is working on, and the seed of each of its masks.

    Args:
        seed: Seed of the run.
        tensor_rank: Tensor-parallel rank, used for sharded activations only.
    """

    def __init__(self, *, seed: int = 0, tensor_rank: int = 0) -> None:
        self._seed = seed
        self._tensor_rank = tensor_rank
        self.begin_step(0, micro_batch_size=1)

    def begin_step(self, first_sample: int, *, micro_batch_size: int, data_rank: int = 0, data_size: int = 1) -> None:
        """Begin an optimizer step.

        Args:
            first_sample: Number of the first sample of the global batch within the run.
            micro_batch_size: Samples of a forward pass.
            data_rank: Of the data-parallel replicas, which take turns micro-batch by micro-batch.
            data_size: Number of replicas.
        """
        self._start = first_sample + data_rank * micro_batch_size
        self._stride = data_size * micro_batch_size
        self._calls: dict[str, int] = {}

    def next_call(self, layer: str) -> int:
        """Count a forward pass of a layer: the first sample of its micro-batch. Recomputation passes it again."""
        call = self._calls.get(layer, 0)
        self._calls[layer] = call + 1
        return self._start + call * self._stride

    def seeds(self, first_sample: int, count: int, site: str, *, sharded: bool) -> list[int]:
        """The seed of each of `count` samples at a site; masks of sharded activations differ between the ranks."""
        rank = self._tensor_rank if sharded else -1
        return [derive_seed(self._seed, first_sample + index, site, rank) for index in range(count)]


def dropout(x: Tensor, probability: float, seeds: Sequence[int]) -> Tensor:
    """Drop elements of (B, ...), those of each sample by its own seed, and scale up the others."""
    keep = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    generator = torch.Generator(x.device)
    for sample, seed in zip(keep, seeds, strict=True):
        sample.bernoulli_(1 - probability, generator=generator.manual_seed(seed))
    return x * keep.div_(1 - probability)


@contextmanager
def global_generator(device: torch.device) -> Iterator[torch.Generator]:
    """The generator of operations that take no other; its state is left as it was."""
    generator = torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)
