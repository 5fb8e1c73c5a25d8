from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaqk.config.checks import check_world, padded_vocab_size, split_layers
from megaqk.config.loading import build_config
from megaqk.errors import UserError


def test_the_data_parallel_size_is_what_the_world_leaves() -> None:
    config = build_config(
        {
            "model": {"num_layers": 5},
            "parallel": {"tensor": 2, "pipeline": 2},
            "training": {"global_batch_size": 24, "micro_batch_size": 2},
        }
    )
    layout = check_world(config, 12)
    assert (layout.tensor, layout.pipeline, layout.data, layout.world_size) == (2, 2, 3, 12)
    assert layout.micro_batches == 4
    assert layout.layers_per_stage == ((0, 3), (3, 5))
    assert layout.bubble_fraction == pytest.approx(1 / 5)


def test_one_process_has_no_bubble() -> None:
    layout = check_world(build_config({}), 1)
    assert layout.bubble_fraction == 0
    assert layout.layers_per_stage == ((0, 12),)


@pytest.mark.parametrize(
    ("sections", "world_size", "line"),
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
def test_a_world_that_does_not_fit_is_refused(sections: dict[str, Any], world_size: int, line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_world(build_config(sections), world_size)
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


@pytest.mark.parametrize(
    ("size", "multiple", "tensor", "rows"),
    [(1000, 128, 1, 1024), (1024, 128, 4, 1024), (1000, 1, 1, 1000), (1000, 8, 3, 1008), (1001, 6, 4, 1008)],
)
def test_a_vocabulary_is_padded_to_the_least_common_multiple(size: int, multiple: int, tensor: int, rows: int) -> None:
    assert padded_vocab_size(size, multiple, tensor) == rows
