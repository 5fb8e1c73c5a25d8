"""What every parameter of both presets is to the model, and where it stands in the list of layers."""

from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.model.decoder import parameter_inventory, stage_bounds
from megaqk.model.parameters import ParameterInfo

LAYERS = 3
PARTS = {
    "qkv.query_": "query", "qkv.key_": "key", "qkv.value_": "value", "attention.output.": "output",
    "up_": "ffn_in", "gate_": "ffn_gate", "ffn.output.": "ffn_out", "norm.": "norm",
}  # fmt: skip


def inventory(**model: Any) -> dict[str, ParameterInfo]:
    config = build_config({"model": {"num_layers": LAYERS, "hidden_size": 8, "num_heads": 2, **model}})
    return {info.name: info for info in parameter_inventory(config, rows=16)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_roles(preset: str, tied: bool) -> None:
    parameters = inventory(preset=preset, tied_embedding=tied, qk_norm=True)
    for name, info in parameters.items():
        role = info.role
        assert role.projection == next((p for part, p in PARTS.items() if part in name), "embedding"), name
        assert role.layer == (int(name.split(".")[1]) if name.startswith("layers.") else None), name
        assert role.decay == (len(info.shape) == 2), name
        looked_up = "positions" in name or (name == "embedding.weight" and not tied)
        assert role.multiplies == (role.decay and not looked_up), name
        if not role.decay:
            assert role.init == ("one" if name.endswith("norm.weight") else "zero"), name
        elif name in ("embedding.weight", "head.weight"):
            assert role.init == "vocabulary", name
        else:
            assert role.init == ("residual" if role.projection in ("output", "ffn_out") else "normal"), name


def test_places() -> None:
    tied = inventory(preset="gpt")
    assert tied["embedding.weight"].places == (0, LAYERS + 3), "the head is the last layer"
    assert tied["embedding_output.positions.weight"].places == (1,)
    assert tied["layers.0.attention_norm.weight"].places == (2,)
    assert tied["final_norm.norm.weight"].places == (LAYERS + 2,)
    untied = inventory(preset="llama")
    assert untied["embedding.weight"].places == (0,)
    assert untied["head.weight"].places == (LAYERS + 3,)


def test_stages_hold_what_precedes_and_what_follows_their_blocks() -> None:
    assert stage_bounds([(0, 3)]) == [0, 7]
    assert stage_bounds([(0, 2), (2, 3)]) == [0, 4, 7]
    assert stage_bounds([(0, 0), (0, 3), (3, 3)]) == [0, 2, 5, 7]
