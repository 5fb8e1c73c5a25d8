"""Learned and rotary positions."""

import torch
from torch import Tensor, nn

from megaqk.model.context import ModelContext
from megaqk.model.parameters import ParameterRole
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.vocabulary import look_up


class LearnedPositions(nn.Module):
    """Adds a learned vector for each absolute position."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.context = context
        tp, shape = context.tp, (context.max_positions, context.model.hidden_size)
        role = ParameterRole(projection="embedding", layer=None, init="normal", decay=True, multiplies=False)
        self.weight = new_parameter(shape, tp, role=role, partial_gradient=tp.sequence)

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Add to (B, S, H) the vectors of its positions.

        Args:
            hidden: S is this rank's part of the sequence under sequence parallelism.
            positions: (B, S) over the whole sequence.
        """
        if self.context.tp.sequence:
            positions = positions.chunk(self.context.tp.size, dim=1)[self.context.tp.rank]
        return hidden + look_up(positions, self.weight)


class Rotary(nn.Module):
    """Rotary position embedding in the half-split layout (Su et al., arXiv 2104.09864).

    Feature i of the first half of a head rotates with feature i of the second half by the angle
    position x base^(-2 i / head_dim), the convention of the Llama checkpoints.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_positions: int, base: float) -> None:
        super().__init__()
        # Integers until they exist: `deepspeed.zero.Init` casts what float factories return while a model is built.
        frequencies = base ** -(torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
        angles = torch.outer(torch.arange(max_positions, device="cpu").float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate (B, heads, S, head_dim) queries and keys by their positions (B, S)."""
        # One head dimension for all heads.
        cos, sin = (table[positions].unsqueeze(1).to(query.dtype) for table in (self.cos, self.sin))
        return _rotated(query, cos, sin), _rotated(key, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
