"""Dropout masks as a function of place and time.

A mask is drawn from a seed made of (run seed, step, micro-batch, data rank, layer, site) and, where the activation
is split over the tensor-parallel group, the tensor rank. Replicated activations thus get one mask on every rank,
sharded ones get independent masks, recomputation repeats the mask it needs, and a resumed run has no generator
state to restore.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and its place."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class DropoutRng:
    """Seeds the generator around each dropout.

    Args:
        seed: Seed of the run.
        data_rank: Data-parallel rank: ranks with other samples draw other masks.
        tensor_rank: Tensor-parallel rank, used for sharded activations only.
    """

    def __init__(self, *, seed: int = 0, data_rank: int = 0, tensor_rank: int = 0) -> None:
        self._base = (seed, data_rank)
        self._tensor_rank = tensor_rank
        self._step = 0
        self._calls: dict[str, int] = {}

    def set_step(self, step: int) -> None:
        """Begin an optimizer step; micro-batches are counted from 0 again."""
        self._step = step
        self._calls.clear()

    def next_call(self, layer: str) -> int:
        """Count a forward pass of a layer. The result names its micro-batch, also when it is recomputed later."""
        call = self._calls.get(layer, 0)
        self._calls[layer] = call + 1
        return derive_seed(*self._base, self._step, layer, call)

    @contextmanager
    def scope(self, call: int, site: str, device: torch.device, *, sharded: bool) -> Iterator[None]:
        """Draw from the seed of one site within a call; the surrounding generator state is left as it was."""
        generator = torch.default_generator
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generator = torch.cuda.default_generators[index]
        state = generator.get_state()
        generator.manual_seed(derive_seed(call, site, self._tensor_rank if sharded else -1))
        try:
            yield
        finally:
            generator.set_state(state)
