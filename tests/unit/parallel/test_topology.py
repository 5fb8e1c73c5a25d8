"""Ranks and coordinates against DeepSpeed's own topology."""

import itertools

import pytest
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from megaqk.parallel.topology import AXES, ParallelDims

SIZES = [sizes for sizes in itertools.product((1, 2, 3, 4, 8), repeat=3) if sizes[0] * sizes[1] * sizes[2] <= 128]
THEIRS = {"pipeline": "pipe", "data": "data", "tensor": "model"}


@pytest.mark.parametrize(("pipeline", "data", "tensor"), SIZES)
def test_numbers_ranks_as_deepspeed_does(pipeline: int, data: int, tensor: int) -> None:
    dims = ParallelDims(pipeline=pipeline, data=data, tensor=tensor)
    theirs = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    assert dims.world_size == theirs.world_size()
    for rank in range(dims.world_size):
        ours = dims.coordinate(rank)
        assert ours._asdict() == {axis: getattr(theirs.get_coord(rank), THEIRS[axis]) for axis in AXES}
        assert dims.rank(ours) == rank
    for axis in AXES:
        expected = theirs.get_axis_comm_lists(THEIRS[axis])
        groups = dims.axis_groups(axis)
        # DeepSpeed lists no groups for an axis of one.
        assert sorted(groups) == sorted(expected or [[rank] for rank in range(dims.world_size)])


@pytest.mark.parametrize("rank", [-1, 8])
def test_refuses_a_rank_outside(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is outside a world of 8"):
        ParallelDims(pipeline=2, data=2, tensor=2).coordinate(rank)
