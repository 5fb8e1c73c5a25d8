"""Every activation by its formula."""

import math
from collections.abc import Callable

import pytest
import torch

from megaqk.config.model import GATED, ModelConfig
from megaqk.model.context import ModelContext
from megaqk.model.feed_forward import ACTIVATIONS, FeedForward


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS: dict[str, Callable[[float], float]] = {
    "gelu": gelu,
    "geglu": gelu,
    "relu_squared": lambda x: max(0.0, x) ** 2,
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_gates(name: str) -> None:
    model = ModelConfig.model_validate({"hidden_size": 1, "num_heads": 1, "bias": False, "feed_forward": name})
    ffn = FeedForward(ModelContext(model=model, rows=2, tokens=2, max_positions=2), index=0)
    gate, up, down = 1.5, -0.7, 0.3  # of every unit of the hidden layer
    with torch.no_grad():
        for key, parameter in ffn.named_parameters():
            parameter.fill_(gate if "gate" in key else up if "up" in key else down)
    for x in (-2.0, -0.5, 0.5, 2.0):
        act = FORMULAS[name]
        unit = act(gate * x) * up * x if name in GATED else act(up * x)
        y = ffn(torch.full((1, 1, 1), x)).item()
        assert y == pytest.approx(model.ffn_width * down * unit, rel=1e-4)
