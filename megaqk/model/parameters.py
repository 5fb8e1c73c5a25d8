"""What is known of a parameter from the configuration alone."""

from dataclasses import dataclass
from math import prod

from megaqk.config.qk_timing import Projection


@dataclass(frozen=True, kw_only=True)
class ParameterInfo:
    """A parameter of the whole model, whatever rank holds which part of it.

    Attributes:
        name: Global name, for example `layers.3.attention.qkv.query_weight`.
        shape: Shape of the unsharded tensor.
        layer: Global depth of its block in [0, num_layers); None outside the blocks.
        projection: What a timing rule may call it.
        shard_dim: Dimension split over tensor-parallel ranks; None where every rank holds all of it.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    projection: Projection
    shard_dim: int | None

    @property
    def numel(self) -> int:
        """Number of elements of the unsharded tensor."""
        return prod(self.shape)

    @property
    def decay(self) -> bool:
        """Whether weight decay applies: to matrices, not to norms and biases."""
        return len(self.shape) > 1
