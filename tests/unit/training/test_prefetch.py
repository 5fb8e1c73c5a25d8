import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megaqk.errors import UserError
from megaqk.model.batch import Stream
from megaqk.training.prefetch import Prefetcher

CPU = torch.device("cpu")


def batch(first: int) -> tuple[Stream, Tensor]:
    tokens = torch.full((1, 2), first)
    return (tokens, tokens + 1), tokens + 2


def test_a_step_is_read_while_the_one_before_is_computed() -> None:
    read: list[int] = []
    ahead = threading.Event()

    def reading(first: int) -> Iterator[tuple[Stream, Tensor]]:
        assert threading.current_thread() is not threading.main_thread()
        read.append(first)
        if first == 8:
            ahead.set()
        yield batch(first)
        yield batch(first + 4)

    prefetcher = Prefetcher(reading, CPU)
    [((tokens, positions), labels), second] = prefetcher.take(0, 8)
    assert (int(tokens[0, 0]), int(positions[0, 0]), int(labels[0, 0])) == (0, 1, 2)
    assert int(second[1][0, 0]) == 6
    assert ahead.wait(10), "the next step is read without being asked for"
    assert [int(labels[0, 0]) for _, labels in prefetcher.take(8, None)] == [10, 14]
    # A resumed run takes another one than that which was announced.
    assert [int(labels[0, 0]) for _, labels in prefetcher.take(100, None)] == [102, 106]
    prefetcher.close()
    assert read == [0, 8, 100]


def test_a_failure_reaches_the_step_that_needs_the_batch() -> None:
    def reading(first: int) -> Iterator[tuple[Stream, Tensor]]:
        if first:
            raise UserError("corpus.bin: damaged")
        yield batch(first)

    prefetcher = Prefetcher(reading, CPU)
    assert len(list(prefetcher.take(0, 8))) == 1
    with pytest.raises(UserError, match=r"corpus\.bin"):
        prefetcher.take(8, 16)
    prefetcher.close()
