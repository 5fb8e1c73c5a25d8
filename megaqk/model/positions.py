"""Learned and rotary positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def forward(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Map (B, S, H) to (B, S, H).

        Args:
            hidden: S is this rank's part of the sequence under sequence parallelism.
            positions: (B, S) over the whole sequence; None for 0 to S - 1.
        """
        length = hidden.shape[1]
        first = self.context.tp.rank * length if self.context.tp.sequence else 0
        if positions is None:
            return hidden + self.weight[first : first + length]
        return hidden + F.embedding(positions[:, first : first + length], self.weight)


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

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Rotate (B, heads, S, head_dim) by the positions (B, S), or by 0 to S - 1."""
        length = x.shape[-2]
        if positions is None:
            cos, sin = self.cos[:length], self.sin[:length]
        else:  # one head dimension for all heads
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
