"""Normalisation layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.config.model import ModelConfig
from megaqk.parallel.groups import TensorParallel
from megaqk.parallel.sharding import new_parameter


class LayerNorm(nn.Module):
    """Layer normalisation with an optional bias (Ba et al., arXiv 1607.06450)."""

    def __init__(self, width: int, *, eps: float, bias: bool, tp: TensorParallel, partial_gradient: bool) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = new_parameter((width,), tp, partial_gradient=partial_gradient)
        self.bias = new_parameter((width,), tp, partial_gradient=partial_gradient) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467), computed in fp32."""

    def __init__(self, width: int, *, eps: float, tp: TensorParallel, partial_gradient: bool) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = new_parameter((width,), tp, partial_gradient=partial_gradient)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


def build_norm(model: ModelConfig, width: int, *, tp: TensorParallel, partial_gradient: bool) -> nn.Module:
    """The configured norm.

    Args:
        model: Names the kind, eps and bias.
        width: Length of the normalised dimension.
        tp: The tensor-parallel group.
        partial_gradient: Whether each rank normalises a part of the tokens (or heads) with the whole weight.
    """
    if model.norm == "rmsnorm":
        return RMSNorm(width, eps=model.norm_eps, tp=tp, partial_gradient=partial_gradient)
    return LayerNorm(width, eps=model.norm_eps, bias=model.bias, tp=tp, partial_gradient=partial_gradient)
