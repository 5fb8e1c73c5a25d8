"""Ranges of a flattened tensor as rectangles, against the elements themselves."""

import pytest
import torch

from megaqk.checkpoint.boxes import Box, boxes_of_range


@pytest.mark.parametrize("shape", [(11,), (5, 7), (7, 1), (1, 9)])
@pytest.mark.parametrize("at_most", [1, 8, 14, 1000])
def test_boxes_are_the_range_in_order(shape: tuple[int, ...], at_most: int) -> None:
    whole = torch.arange(Box.whole(shape).numel).view(shape)
    outer = Box.whole(shape)
    for first in range(whole.numel()):
        for end in range(first + 1, whole.numel() + 1):
            boxes = boxes_of_range(shape, first, end, at_most=at_most)
            elements = torch.cat([box.within(outer, whole).flatten() for box in boxes])
            assert elements.tolist() == list(range(first, end))
            assert all(box.numel <= max(at_most, shape[-1] if len(shape) > 1 else 0) for box in boxes)
            if at_most == 1000:
                assert len(boxes) <= 3


def test_an_empty_range_has_none() -> None:
    assert boxes_of_range((5, 7), 9, 9, at_most=10) == []
    assert boxes_of_range((5,), 3, 3, at_most=10) == []


def test_intersections_and_views() -> None:
    whole = torch.arange(30).view(5, 6)
    outer = Box((0, 0), (5, 6))
    a, b = Box((1, 2), (3, 4)), Box((2, 0), (3, 4))
    both = a.intersection(b)
    assert both == Box((2, 2), (2, 2)) == b.intersection(a)
    view = a.within(outer, whole)
    assert torch.equal(both.within(a, view), whole[2:4, 2:4])
    assert a.intersection(Box((4, 0), (1, 6))) is None
    assert a.intersection(Box((0, 5), (5, 1))) == Box((1, 5), (3, 1))
    assert a.shifted(1, 6) == Box((1, 8), (3, 4))
