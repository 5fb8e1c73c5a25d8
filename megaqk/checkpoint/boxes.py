"""Rectangles of a tensor, and how a range of its flattened elements falls into them."""

from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A rectangle of a tensor.

    Attributes:
        first: Its first index in each dimension.
        shape: Its extent in each dimension.
    """

    first: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Box":
        """All of a tensor of this shape."""
        return cls((0,) * len(shape), shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def shifted(self, dim: int, by: int) -> "Box":
        """The same rectangle further on in one dimension."""
        return Box(tuple(at + by * (d == dim) for d, at in enumerate(self.first)), self.shape)

    def intersection(self, other: "Box") -> "Box | None":
        """What both have, or None."""
        first = tuple(max(a, b) for a, b in zip(self.first, other.first, strict=True))
        ends = zip(self.first, self.shape, other.first, other.shape, strict=True)
        shape = tuple(min(a + n, b + m) - at for at, (a, n, b, m) in zip(first, ends, strict=True))
        return Box(first, shape) if min(shape, default=1) > 0 else None

    def within(self, outer: "Box", tensor: Tensor) -> Tensor:
        """This rectangle as a view of a tensor that holds the rectangle `outer` around it."""
        for dim, (at, start, length) in enumerate(zip(self.first, outer.first, self.shape, strict=True)):
            tensor = tensor.narrow(dim, at - start, length)
        return tensor


def boxes_of_range(shape: tuple[int, ...], first: int, end: int, *, at_most: int) -> list[Box]:
    """The elements [first, end) of a flattened vector or matrix as rectangles, each contiguous, in order.

    A range of a matrix begins and ends within rows, so it is the end of a row, whole rows, and the beginning of one.

    Args:
        shape: Of the whole, one or two dimensions.
        first: First element.
        end: One after the last.
        at_most: Elements of a rectangle; one row may have more.
    """
    if len(shape) == 1:
        return [Box((at,), (min(at_most, end - at),)) for at in range(first, end, at_most)]
    _, width = shape
    boxes = []
    rows_at_once = max(1, at_most // width)
    while first < end:
        row, column = divmod(first, width)
        if column or end - first < width:
            length = min(width - column, end - first)
            boxes.append(Box((row, column), (1, length)))
        else:
            rows = min(rows_at_once, (end - first) // width)
            length = rows * width
            boxes.append(Box((row, 0), (rows, width)))
        first += length
    return boxes
