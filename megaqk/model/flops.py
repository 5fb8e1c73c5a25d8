"""Floating-point operations of the model, for throughput and utilisation."""

from collections.abc import Iterable

from megaqk.config.model import ModelConfig
from megaqk.model.parameters import ParameterInfo


def matmul_parameters(model: ModelConfig, parameters: Iterable[ParameterInfo]) -> int:
    """Parameters that every token is multiplied by: all matrices, the output head included.

    Looking up an embedding or a learned position multiplies nothing, so those tables are left out, except a token
    table that is also the head.
    """
    looked_up = {"embedding_output.positions.weight"} | (set() if model.tied_embedding else {"embedding.weight"})
    return sum(info.numel for info in parameters if len(info.shape) == 2 and info.name not in looked_up)


def flops_per_token(model: ModelConfig, parameters: Iterable[ParameterInfo], sequence_length: int) -> float:
    """Model FLOPs of training on one token, forward and backward: 6 N + 12 L (heads x head_dim) S.

    The formula of PaLM (Chowdhery et al., arXiv 2204.02311, appendix B): two operations for each of the N
    multiplying parameters forward and four backward, and the same for the two attention products. Attention counts
    in full, not halved for the causal mask; recomputed activations do not count.

    Args:
        model: Architecture.
        parameters: Inventory of the whole model.
        sequence_length: Tokens of a sample.
    """
    attention = model.num_layers * model.num_heads * model.head_size * sequence_length
    return 6.0 * matmul_parameters(model, parameters) + 12.0 * attention
