"""Initial weights are a function of the seed and the global name: no topology, no padding and no neighbour matters."""

from math import sqrt

import pytest
import torch

from megaqk.config.model import ModelConfig
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.parallel.sharding import sharding_of
from megaqk.parallel.tensor_parallel import TensorParallel

TOKENS, LAYERS = 50, 3


def weights(
    preset: str = "gpt", *, rows: int = 64, size: int = 1, rank: int = 0, seed: int = 7, **model: object
) -> dict[str, torch.nn.Parameter]:
    values: dict[str, object] = {"preset": preset, "num_layers": LAYERS, "hidden_size": 64, "num_heads": 4, **model}
    context = ModelContext(
        model=ModelConfig.model_validate(values),
        rows=rows,
        tokens=TOKENS,
        max_positions=16,
        tp=TensorParallel(size=size, rank=rank),
    )
    parameters = Decoder(context).global_parameters()
    initialize(parameters, context, seed)
    return parameters


@pytest.mark.parametrize("preset", ["gpt", "llama"])
@pytest.mark.parametrize("size", [2, 4])
def test_every_rank_has_its_part_of_one_model(preset: str, size: int) -> None:
    # Feed-forward shards that begin within what one seed draws, and end within the next.
    width = {"hidden_size": 192}
    whole = weights(preset, **width)
    ranks = [weights(preset, size=size, rank=rank, **width) for rank in range(size)]
    for name, value in whole.items():
        parts = [rank[name] for rank in ranks]
        dim = sharding_of(parts[0]).dim
        if dim is None:
            assert all(torch.equal(part, value) for part in parts)
        else:
            assert torch.equal(torch.cat(parts, dim), value)


@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_padding_changes_no_weight(preset: str) -> None:
    small, large = weights(preset, rows=TOKENS), weights(preset, rows=128)
    assert small.keys() == large.keys()
    for name, value in small.items():
        assert torch.equal(value, large[name][: len(value)])
        assert not large[name][len(value) :].any()


def test_depth_and_ingredients_leave_the_other_weights_alone() -> None:
    plain = weights(init_scale_residual=False)
    for other in (
        weights(init_scale_residual=False, num_layers=LAYERS + 2),
        weights(init_scale_residual=False, norm="rmsnorm", bias=False, tied_embedding=False, positions="rotary"),
    ):
        shared = [name for name in plain if name in other]
        assert len(shared) > len(plain) / 3
        assert all(torch.equal(plain[name], other[name]) for name in shared)


def test_seeds_and_names_draw_apart() -> None:
    first, second = weights(seed=7), weights(seed=8)
    query, key = first["layers.0.attention.qkv.query_weight"], first["layers.0.attention.qkv.key_weight"]
    assert not torch.equal(query, key)
    assert not torch.equal(query, first["layers.1.attention.qkv.query_weight"])
    assert not torch.equal(query, second["layers.0.attention.qkv.query_weight"])


def test_deviations() -> None:
    for name, value in weights(init_std=0.05, hidden_size=128).items():
        if value.dim() == 1:
            expected = torch.ones_like(value) if name.endswith("norm.weight") else torch.zeros_like(value)
            assert torch.equal(value, expected), name
            continue
        writes = name.endswith(("attention.output.weight", "ffn.output.weight"))
        std = 0.05 / sqrt(2 * LAYERS) if writes else 0.05
        assert float(value[:TOKENS].detach().std()) == pytest.approx(std, rel=0.1), name
