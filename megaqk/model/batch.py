"""What a micro-batch is, and what flows from layer to layer."""

import torch
from torch import Tensor

Stream = tuple[Tensor, Tensor]
"""Hidden state (B, S, H), at the start token ids (B, S), and the positions (B, S), int64, of the whole sequence.

Positions count from 0, in each document anew where documents that share a sample are kept apart. They travel with the
hidden state because every pipeline stage needs them. Under sequence parallelism S of the hidden state alone is this
rank's part.
"""

Labels = tuple[Tensor, Tensor]
"""Token ids (B, S), and the scalar weight by which the sum of their losses is multiplied."""

Batch = tuple[Stream, Labels]
"""A micro-batch."""


def plain_positions(tokens: Tensor) -> Tensor:
    """Positions (B, S) of token ids (B, S) whose samples are read as one text each: 0 to S - 1."""
    return torch.arange(tokens.shape[1], device=tokens.device).repeat(tokens.shape[0], 1)
