"""Ranks and coordinates as pure functions, in DeepSpeed's order of axes."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Axis = Literal["pipeline", "data", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "tensor")


class Coordinate(NamedTuple):
    """Place of a rank on the three axes."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """Sizes of the parallel axes.

    Tensor-parallel ranks are neighbours, since they talk most; then data, then pipeline. This is the order of
    DeepSpeed's PipeModelDataParallelTopology.
    """

    pipeline: int = 1
    data: int = 1
    tensor: int = 1

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.pipeline * self.data * self.tensor

    def rank(self, coordinate: Coordinate) -> int:
        """The global rank at a coordinate."""
        return (coordinate.pipeline * self.data + coordinate.data) * self.tensor + coordinate.tensor

    def coordinate(self, rank: int) -> Coordinate:
        """The coordinate of a global rank.

        Raises:
            ValueError: If the rank is not below the world size.
        """
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside a world of {self.world_size}")
        outer, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(outer, self.data)
        return Coordinate(pipeline, data, tensor)

    def axis_groups(self, axis: Axis) -> list[list[int]]:
        """The lists of ranks that differ in `axis` alone, in the order of their first rank."""
        groups: dict[Coordinate, list[int]] = {}
        for rank in range(self.world_size):
            coordinate = self.coordinate(rank)
            groups.setdefault(coordinate._replace(**{axis: 0}), []).append(rank)
        return list(groups.values())
