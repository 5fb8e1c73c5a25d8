from itertools import product

import pytest

from megaqk.config.loading import build_config
from megaqk.config.model import PRESETS, ModelConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_nothing_but_its_ingredients(preset: str) -> None:
    by_name = ModelConfig.model_validate({"preset": preset})
    by_hand = ModelConfig.model_validate(PRESETS[preset])
    assert {**by_name.model_dump(), "preset": "gpt"} == by_hand.model_dump()


@pytest.mark.parametrize(("preset", "key"), list(product(("gpt", "llama"), PRESETS["gpt"])))
def test_every_single_change_between_the_presets_is_a_configuration(preset: str, key: str) -> None:
    other = PRESETS["llama" if preset == "gpt" else "gpt"][key]
    changed = build_config({"model": {"preset": preset, key: other}}).model
    plain = build_config({"model": {"preset": preset}}).model
    assert {name for name, value in changed if value != getattr(plain, name)} == {key}


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({}, 3072),
        ({"feed_forward": "relu_squared", "ffn_hidden_size": 1000}, 1000),
        ({"feed_forward": "swiglu"}, 2048),
        ({"feed_forward": "geglu", "hidden_size": 192, "num_heads": 4}, 512),
        ({"feed_forward": "swiglu", "ffn_hidden_size": 1000}, 672),  # 666.7: 640 is 4 % off
        ({"feed_forward": "swiglu", "ffn_hidden_size": 4096}, 2688),  # 2730.7 to a multiple of 128
        ({"feed_forward": "swiglu", "ffn_hidden_size": 16}, 8),
        ({"feed_forward": "swiglu", "ffn_hidden_size": 1000, "ffn_multiple_of": 256}, 768),
        ({"feed_forward": "swiglu", "ffn_hidden_size": 4, "ffn_multiple_of": 64}, 64),
        ({"feed_forward": "swiglu", "ffn_hidden_size": 1000, "ffn_match_parameters": False}, 1000),
    ],
)
def test_the_feed_forward_width_in_use(keys: dict[str, object], width: int) -> None:
    assert ModelConfig.model_validate(keys).ffn_width == width


def test_head_sizes_follow_unless_given() -> None:
    model = ModelConfig(hidden_size=96, num_heads=4)
    assert (model.kv_heads, model.head_size) == (4, 24)
    model = ModelConfig(hidden_size=100, num_heads=6, num_kv_heads=2, head_dim=16)
    assert (model.kv_heads, model.head_size) == (2, 16)
