"""Floating-point operations of the model, for throughput and utilisation."""

from collections.abc import Iterable

from megaqk.config.model import ModelConfig
from megaqk.model.parameters import ParameterInfo


def matmul_parameters(parameters: Iterable[ParameterInfo]) -> int:
    """Parameters that every token is multiplied by: all matrices, the output head included."""
    return sum(info.numel for info in parameters if info.role.multiplies)


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
    return 6.0 * matmul_parameters(parameters) + 12.0 * attention
