"""Tensors that are read when they are asked for, whole or a rectangle, and what a mapping makes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box


@dataclass(frozen=True)
class LazyTensor:
    """A tensor somewhere else.

    Attributes:
        shape: Its shape.
        reader: Gives a rectangle of it in fp32, in memory of its own.
    """

    shape: tuple[int, ...]
    reader: Callable[[Box], Tensor]

    def read(self, box: Box | None = None) -> Tensor:
        """A rectangle of it in fp32; all of it by default."""
        return self.reader(Box.whole(self.shape) if box is None else box)


def constant(shape: tuple[int, ...], value: float) -> LazyTensor:
    """The same number everywhere."""
    return LazyTensor(shape, lambda box: torch.full(box.shape, value))


def transposed(x: LazyTensor) -> LazyTensor:
    """A matrix by column."""
    return LazyTensor(x.shape[::-1], lambda box: x.read(Box(box.first[::-1], box.shape[::-1])).t())


def part(x: LazyTensor, first: int, count: int, *, dim: int = 0) -> LazyTensor:
    """Some of the indices of a dimension."""
    shape = tuple(count if d == dim else size for d, size in enumerate(x.shape))
    return LazyTensor(shape, lambda box: x.read(box.shifted(dim, first)))


def joined(parts: Sequence[LazyTensor]) -> LazyTensor:
    """One after the other in the first dimension."""
    rows = sum(x.shape[0] for x in parts)

    def read(box: Box) -> Tensor:
        found, at = [], 0
        for x in parts:
            mine = Box.whole(x.shape).shifted(0, at)
            if (common := box.intersection(mine)) is not None:
                found.append(x.read(common.shifted(0, -at)))
            at += x.shape[0]
        return found[0] if len(found) == 1 else torch.cat(found)

    return LazyTensor((rows, *parts[0].shape[1:]), read)


def gathered(x: LazyTensor, index: Tensor) -> LazyTensor:
    """Rows of another one by their numbers; reading some reads what lies between the first and the last of them."""

    def read(box: Box) -> Tensor:
        wanted = index[box.first[0] : box.first[0] + box.shape[0]]
        first, last = int(wanted.min()), int(wanted.max())
        outer = Box((first, *box.first[1:]), (last + 1 - first, *box.shape[1:]))
        return x.read(outer)[wanted - first]

    return LazyTensor((len(index), *x.shape[1:]), read)


def elementwise(x: LazyTensor, function: Callable[[Tensor], Tensor]) -> LazyTensor:
    """A function of each element."""
    return LazyTensor(x.shape, lambda box: function(x.read(box)))


def of_whole(x: LazyTensor, function: Callable[[Tensor], Tensor]) -> LazyTensor:
    """A function, of the same shape, that needs all of it."""
    return LazyTensor(x.shape, lambda box: box.within(Box.whole(x.shape), function(x.read())))
