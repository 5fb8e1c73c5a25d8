"""Process groups of the tensor axis."""

from dataclasses import dataclass

import torch.distributed as dist

from megaqk.parallel.topology import ParallelDims


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorParallel:
    """What a layer needs to know of its tensor-parallel group.

    Attributes:
        size: Ranks in the group.
        rank: This process's place in it.
        group: Its communicator; None for a group of one.
        sequence: Whether residuals and norms are split along the sequence (Korthikanti et al., arXiv 2205.05198).
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    sequence: bool = False

    def share(self, total: int) -> int:
        """The length of this rank's part of a dimension.

        Raises:
            ValueError: If the dimension does not divide evenly.
        """
        if total % self.size:
            raise ValueError(f"a dimension of {total} cannot be split over {self.size} tensor-parallel ranks")
        return total // self.size


def tensor_parallel(dims: ParallelDims, *, sequence: bool) -> TensorParallel:
    """Create this process's tensor-parallel group. Every rank must call it."""
    if dims.tensor == 1:
        return TensorParallel()
    rank = dist.get_rank()
    mine: dist.ProcessGroup | None = None
    for ranks in dims.axis_groups("tensor"):
        group = dist.new_group(ranks)
        if rank in ranks:
            mine = group
    return TensorParallel(size=dims.tensor, rank=dims.coordinate(rank).tensor, group=mine, sequence=sequence)
