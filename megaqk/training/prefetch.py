"""The batches of the next step, read and copied to the device while the current step is computed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from megaqk.model.batch import Stream

MicroBatches = Sequence[tuple[Stream, Tensor]]


class Prefetcher:
    """Reads one step ahead in a thread.

    Args:
        read: The micro-batches (inputs and labels, on the host) of the global batch that starts at a sample.
        device: Where they are wanted.
    """

    def __init__(self, read: Callable[[int], Iterator[tuple[Stream, Tensor]]], device: torch.device) -> None:
        self._read = read
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="megaqk-prefetch")
        self._ahead: tuple[int, Future[MicroBatches]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take(self, first_sample: int, following: int | None) -> Iterator[tuple[Stream, Tensor]]:
        """The micro-batches of the global batch that starts at a sample; begins to read those of `following`.

        Raises:
            UserError: What reading them raised, in the thread or here.
        """
        ready = self._ahead
        if ready is None or ready[0] != first_sample:
            ready = (first_sample, self._thread.submit(self._fetch, first_sample))
        batches = ready[1].result()
        self._ahead = None if following is None else (following, self._thread.submit(self._fetch, following))
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for (tokens, positions), labels in batches:
                for tensor in (tokens, positions, labels):
                    tensor.record_stream(current)
        return iter(batches)

    def _fetch(self, first_sample: int) -> MicroBatches:
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            return [
                ((self._moved(tokens), self._moved(positions)), self._moved(labels))
                for (tokens, positions), labels in self._read(first_sample)
            ]

    def _moved(self, tensor: Tensor) -> Tensor:
        # Only from pinned memory does a copy run beside the computation.
        pinned = tensor.pin_memory() if self._stream is not None else tensor
        return pinned.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the thread, once it has read what it reads."""
        self._thread.shutdown(wait=True, cancel_futures=True)
