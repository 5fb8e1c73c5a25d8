"""Feed-forward networks, gated and ungated."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.model.context import ModelContext
from megaqk.model.parameters import linear_roles
from megaqk.parallel.linear import ColumnParallelLinear, Output, RowParallelLinear


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
    """down(act(up x)), or down(act(gate x) * up x) for the gated kinds.

    Args:
        context: What all layers share.
        index: Global depth of the block.
    """

    def __init__(self, context: ModelContext, index: int) -> None:
        super().__init__()
        model, tp = context.model, context.tp
        self.activation = ACTIVATIONS[model.feed_forward]
        inputs = {"up": Output(model.ffn_width, *linear_roles("ffn_in", index))}
        if model.gated:
            inputs["gate"] = Output(model.ffn_width, *linear_roles("ffn_gate", index))
        self.input = ColumnParallelLinear(model.hidden_size, inputs, bias=model.bias, tp=tp)
        output = Output(model.hidden_size, *linear_roles("ffn_out", index, writes_residual=True))
        self.output = RowParallelLinear(model.ffn_width, output, bias=model.bias, tp=tp)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, H) to (B, S, H); S is this rank's part under sequence parallelism."""
        up, *gate = self.input(x)
        hidden = self.activation(gate[0]) * up if gate else self.activation(up)
        return self.output(hidden)  # type: ignore[no-any-return]
