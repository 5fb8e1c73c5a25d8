"""What a layer knows of its tensor-parallel group."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorParallel:
    """A tensor-parallel group, seen from one of its ranks.

    Attributes:
        size: Ranks in the group.
        rank: This process's place in it.
        group: Its communicator; None for a group of one.
        sequence: Whether residuals and norms are split along the sequence (Korthikanti et al., arXiv 2205.05198).
    """

    size: int = 1
    rank: int = 0
    group: "dist.ProcessGroup | None" = None
    sequence: bool = False

    @property
    def name(self) -> str:
        """Under which torch knows the communicator."""
        return self.group.group_name if self.group is not None else ""

    def share(self, total: int) -> int:
        """The length of this rank's part of a dimension, which must divide evenly."""
        if total % self.size:
            raise ValueError(f"a dimension of {total} cannot be split over {self.size} tensor-parallel ranks")
        return total // self.size
