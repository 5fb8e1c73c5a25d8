"""Ranks, coordinates and pipeline stages, against DeepSpeed's own topology and by hand."""

import itertools
from typing import Any

import pytest
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from hypothesis import given, settings
from hypothesis import strategies as st

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.parallel.world import World, split_layers
from megaqk.runtime.launch import Launch

SIZES = [sizes for sizes in itertools.product((1, 2, 3, 4, 8), repeat=3) if sizes[0] * sizes[1] * sizes[2] <= 128]


def world(sections: dict[str, Any], size: int, rank: int = 0) -> World:
    return World(build_config(sections), Launch(world_size=size, rank=rank))


@pytest.mark.parametrize(("pipeline", "data", "tensor"), SIZES)
def test_numbers_ranks_as_deepspeed_does(pipeline: int, data: int, tensor: int) -> None:
    theirs = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    size = pipeline * data * tensor
    sections = {
        "model": {"num_heads": 24},
        "parallel": {"pipeline": pipeline, "tensor": tensor},
        "training": {"global_batch_size": data, "micro_batch_size": 1},
    }
    ours = world(sections, size)
    assert ours.sizes == (pipeline, data, tensor)
    for rank in range(size):
        coordinate = ours.coordinate_of(rank)
        expected = theirs.get_coord(rank)
        assert (coordinate.pipeline, coordinate.data, coordinate.tensor) == (
            expected.pipe,
            expected.data,
            expected.model,
        )
    assert world(sections, size, size - 1).coordinate == (pipeline - 1, data - 1, tensor - 1)


def test_the_data_parallel_size_is_what_the_world_leaves() -> None:
    laid_out = world(
        {
            "model": {"num_layers": 5},
            "parallel": {"tensor": 2, "pipeline": 2},
            "training": {"global_batch_size": 24, "micro_batch_size": 2},
        },
        12,
    )
    assert (laid_out.tensor, laid_out.pipeline, laid_out.data, laid_out.size) == (2, 2, 3, 12)
    assert laid_out.micro_batches == 4
    assert laid_out.layers_per_stage == ((0, 3), (3, 5))
    assert laid_out.bubble_fraction == pytest.approx(1 / 5)


def test_one_process_has_no_bubble() -> None:
    alone = world({}, 1)
    assert alone.bubble_fraction == 0
    assert alone.layers_per_stage == ((0, 12),)


@pytest.mark.parametrize(
    ("sections", "size", "line"),
    [
        (
            {"parallel": {"tensor": 2, "pipeline": 2}},
            6,
            "world size = 6: must be a multiple of parallel.tensor x parallel.pipeline = 2 x 2 = 4",
        ),
        ({}, 0, "world size = 0: must be a multiple of parallel.tensor x parallel.pipeline = 1 x 1 = 1"),
        (
            {"training": {"global_batch_size": 32, "micro_batch_size": 4}},
            3,
            "training.global_batch_size = 32: must be divisible by training.micro_batch_size x data-parallel size = "
            "4 x 3 = 12",
        ),
    ],
)
def test_a_world_that_does_not_fit_is_refused(sections: dict[str, Any], size: int, line: str) -> None:
    with pytest.raises(UserError) as caught:
        world(sections, size)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ((7, 3), ((0, 3), (3, 5), (5, 7))),
        ((4, 4), ((0, 1), (1, 2), (2, 3), (3, 4))),
        ((4, 3, (0, 4, 0)), ((0, 0), (0, 4), (4, 4))),
        ((4, 2, (1, 3)), ((0, 1), (1, 4))),
    ],
)
def test_layers_of_each_stage(arguments: tuple[Any, ...], stages: tuple[tuple[int, int], ...]) -> None:
    assert split_layers(*arguments) == stages


@settings(deadline=None)
@given(stages=st.integers(1, 9), extra=st.integers(0, 40))
def test_an_even_split_covers_all_layers_and_differs_by_one_at_most(stages: int, extra: int) -> None:
    parts = split_layers(stages + extra, stages)
    sizes = [end - first for first, end in parts]
    assert [layer for part in parts for layer in range(*part)] == list(range(stages + extra))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
