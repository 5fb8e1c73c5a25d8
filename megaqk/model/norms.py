"""Normalisation layers."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.config.model import ModelConfig
from megaqk.model.parameters import vector_role
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.tensor_parallel import TensorParallel


class LayerNorm(nn.Module):
    """Layer normalisation with an optional bias (Ba et al., arXiv 1607.06450)."""

    def __init__(self, width: int, *, eps: float, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467), computed in fp32."""

    def __init__(self, width: int, *, eps: float, weight: nn.Parameter) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


def build_norm(
    model: ModelConfig, width: int, *, layer: int | None, tp: TensorParallel, partial_gradient: bool
) -> nn.Module:
    """The configured norm.

    Args:
        model: Names the kind, eps and bias.
        width: Length of the normalised dimension.
        layer: Global depth of its block; None outside the blocks.
        tp: The tensor-parallel group.
        partial_gradient: Whether each rank normalises a part of the tokens (or heads) with the whole weight.
    """

    def vector(init: Literal["one", "zero"]) -> nn.Parameter:
        role = vector_role("norm", layer, init)
        return new_parameter((width,), tp, role=role, partial_gradient=partial_gradient)

    if model.norm == "rmsnorm":
        return RMSNorm(width, eps=model.norm_eps, weight=vector("one"))
    return LayerNorm(width, eps=model.norm_eps, weight=vector("one"), bias=vector("zero") if model.bias else None)
