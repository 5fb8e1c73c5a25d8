"""The three matrix products of a linear layer, each on the fastest exact kernel of its device.

torch multiplies fp32 matrices on the CPU with MKL, which uses half the vector width of AVX-512 on other makers'
processors. oneDNN, which the same build of torch contains, generates its kernels for the processor it finds and
computes in full fp32 as well (`tools/bench/matmul.py` prints the ratio).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _onednn_works() -> bool:
    """Whether torch's oneDNN linear operator is there and computes what it should."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        x = torch.arange(12.0).view(3, 4)
        return torch.equal(_onednn_linear(x, x, None), x @ x.t())
    except (AttributeError, RuntimeError):  # another build of torch, without the operator
        return False


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


ONEDNN = _onednn_works()


def uses_onednn(x: Tensor) -> bool:
    """Whether products of this tensor run on oneDNN, which has no autograd formula of its own."""
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _on_onednn(x: Tensor, y: Tensor) -> bool:
    # oneDNN has no product of empty matrices; a rank whose vocabulary rows are all padding makes one.
    return uses_onednn(x) and x.numel() > 0 and y.numel() > 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in) times (out, in) transposed, plus (out): (..., out). Not differentiable on oneDNN."""
    return _onednn_linear(x, weight, bias) if _on_onednn(x, weight) else F.linear(x, weight, bias)


def input_gradient(grad: Tensor, weight: Tensor, total: Tensor | None = None) -> Tensor:
    """(N, out) times (out, in): (N, in), added to `total` in place if that is given."""
    if _on_onednn(grad, weight):
        product = _onednn_linear(grad, weight.t(), None)
        return product if total is None else total.add_(product)
    return grad @ weight if total is None else total.addmm_(grad, weight)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """(N, out) transposed times (N, in): (out, in)."""
    return _onednn_linear(grad.t(), x.t(), None) if _on_onednn(grad, x) else grad.t() @ x
