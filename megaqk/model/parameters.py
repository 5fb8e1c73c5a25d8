"""What a parameter is to the model: its role, which it gets where it is created, and all that is known of it."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from megaqk.config.model import Projection


@dataclass(frozen=True, kw_only=True)
class ParameterRole:
    """What a parameter is to the model.

    Attributes:
        projection: What a timing rule may call it.
        layer: Global depth of its block in [0, num_layers); None outside the blocks.
        init: How it starts; see `megaqk.model.init`.
        decay: Whether weight decay applies: to matrices, not to norms and biases.
        multiplies: Whether every token is multiplied by it, which looking up a row of it is not.
    """

    projection: Projection
    layer: int | None
    init: Literal["normal", "residual", "vocabulary", "one", "zero"]
    decay: bool
    multiplies: bool


def linear_roles(
    projection: Projection, layer: int, *, writes_residual: bool = False
) -> tuple[ParameterRole, ParameterRole]:
    """The roles of the weight and of the bias of a linear layer in a block."""
    weight = ParameterRole(
        projection=projection,
        layer=layer,
        init="residual" if writes_residual else "normal",
        decay=True,
        multiplies=True,
    )
    return weight, vector_role(projection, layer, "zero")


def vector_role(projection: Projection, layer: int | None, init: Literal["one", "zero"]) -> ParameterRole:
    """The role of a bias or of a norm's weight."""
    return ParameterRole(projection=projection, layer=layer, init=init, decay=False, multiplies=False)


def role_of(parameter: Tensor) -> ParameterRole:
    """The role with which the parameter was created."""
    role = getattr(parameter, "role", None)
    assert isinstance(role, ParameterRole), "the parameter was created without a role"
    return role


@dataclass(frozen=True, kw_only=True)
class ParameterInfo:
    """A parameter of the whole model, whatever rank holds which part of it.

    Attributes:
        name: Global name, for example `layers.3.attention.qkv.query_weight`.
        shape: Shape of the unsharded tensor.
        shard_dim: Dimension split over tensor-parallel ranks; None where every rank holds all of it.
        role: What it is to the model.
        places: Where its module stands in the decoder's list of layers; a tied embedding stands in two places.
    """

    name: str
    shape: tuple[int, ...]
    shard_dim: int | None
    role: ParameterRole
    places: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements of the unsharded tensor."""
        return prod(self.shape)
