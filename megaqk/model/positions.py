"""Learned and rotary positions."""

import torch
from torch import Tensor, nn

from megaqk.model.context import ModelContext
from megaqk.parallel.sharding import new_parameter


class LearnedPositions(nn.Module):
    """Adds a learned vector for each absolute position."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.context = context
        tp = context.tp
        self.weight = new_parameter(
            (context.max_positions, context.model.hidden_size), tp, partial_gradient=tp.sequence
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, S, H) to (B, S, H); under sequence parallelism S is this rank's part of the sequence."""
        length = hidden.shape[1]
        first = self.context.tp.rank * length if self.context.tp.sequence else 0
        return hidden + self.weight[first : first + length]


class Rotary(nn.Module):
    """Rotary position embedding in the half-split layout (Su et al., arXiv 2104.09864).

    Feature i of the first half of a head rotates with feature i of the second half by the angle
    position x base^(-2 i / head_dim), the convention of the Llama checkpoints.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_positions: int, base: float) -> None:
        super().__init__()
        frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32, device="cpu"), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (B, heads, S, head_dim) by positions 0 to S - 1."""
        length = x.shape[-2]
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
