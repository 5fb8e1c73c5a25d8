"""FLOPs of a token, counted by hand."""

from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.model.decoder import parameter_inventory
from megaqk.model.flops import flops_per_token, matmul_parameters

ROWS, LENGTH = 16, 4
# Per block: four of 8 x 8; then two matrices 8 x 32, or three 8 x 24 (two thirds, to a multiple of 8).
PLAIN, GATED = 4 * 64 + 2 * 8 * 32, 4 * 64 + 3 * 8 * 24
HEAD = ROWS * 8


@pytest.mark.parametrize(
    ("model", "multiplied"),
    [
        # A tied table is the head as well; learned positions, norms and biases multiply nothing.
        ({"preset": "gpt"}, 2 * PLAIN + HEAD),
        ({"preset": "gpt", "tied_embedding": False}, 2 * PLAIN + HEAD),
        ({"preset": "llama"}, 2 * GATED + HEAD),
        ({"preset": "llama", "num_kv_heads": 1}, 2 * (GATED - 2 * 8 * 4) + HEAD),
    ],
)
def test_flops_of_a_token(model: dict[str, Any], multiplied: int) -> None:
    config = build_config({"model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2, **model}})
    inventory = parameter_inventory(config, rows=ROWS)
    assert matmul_parameters(inventory) == multiplied
    # Two products of 4 x 4 positions for each of 2 heads of 4, in 2 layers; forward once, backward twice.
    attention = 2 * (2 * 2 * 4 * LENGTH) * 2 * 3
    assert flops_per_token(config.model, inventory, LENGTH) == 6 * multiplied + attention
