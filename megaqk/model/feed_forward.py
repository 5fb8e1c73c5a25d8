"""Feed-forward networks, gated and ungated."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.model.context import ModelContext
from megaqk.parallel.linear import ColumnParallelLinear, RowParallelLinear


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


# GELU in GPT-2's tanh form: arXiv 1606.08415; squared ReLU: arXiv 2109.08668; GLU variants: arXiv 2002.05202.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "relu_squared": _relu_squared,
    "swiglu": F.silu,
    "geglu": _gelu,
}


class FeedForward(nn.Module):
    """down(act(up x)), or down(act(gate x) * up x) for the gated kinds."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        model, tp = context.model, context.tp
        self.activation = ACTIVATIONS[model.feed_forward]
        names = ("up", "gate") if model.gated else ("up",)
        self.input = ColumnParallelLinear(
            model.hidden_size, dict.fromkeys(names, model.ffn_width), bias=model.bias, tp=tp
        )
        self.output = RowParallelLinear(model.ffn_width, model.hidden_size, bias=model.bias, tp=tp)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, H) to (B, S, H); S is this rank's part under sequence parallelism."""
        up, *gate = self.input(x)
        hidden = self.activation(gate[0]) * up if gate else self.activation(up)
        return self.output(hidden)  # type: ignore[no-any-return]
