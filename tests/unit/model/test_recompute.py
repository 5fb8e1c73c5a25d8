"""Recomputed activations are those of the forward pass, dropout masks included."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megaqk.config.model import ModelConfig
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize

VOCAB, LENGTH = 61, 16


def gradients(recompute: str, **model: Any) -> dict[str, Tensor]:
    """Gradients of two micro-batches: both forward passes come before the first backward pass, as in a pipeline."""
    architecture = ModelConfig(num_layers=2, hidden_size=24, num_heads=4, init_std=0.2, **model)
    context = ModelContext(model=architecture, rows=VOCAB, tokens=VOCAB, max_positions=LENGTH, recompute=recompute)
    decoder = Decoder(context)
    initialize(decoder.global_parameters(), context, seed=5)
    samples = torch.randint(VOCAB, (2, 3, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    context.rng.begin_step(0, micro_batch_size=3)
    losses = []
    for sample in samples:
        tokens, weight = sample[:, :-1], torch.tensor(1 / (3 * LENGTH))
        losses.append(decoder((tokens, plain_positions(tokens)), (sample[:, 1:], weight)))
    for loss in losses:
        loss.backward()
    return {name: p.grad for name, p in decoder.global_parameters().items() if p.grad is not None}


@pytest.mark.parametrize("preset", ["gpt", "llama"])
@pytest.mark.parametrize("dropout", [{"dropout": 0.3}, {"attention_dropout": 0.3}])
def test_recomputation_repeats_the_dropout_masks(preset: str, dropout: dict[str, float]) -> None:
    kept = gradients("none", preset=preset, **dropout)
    without = gradients("none", preset=preset)
    assert any(not torch.allclose(kept[name], without[name], rtol=0.1) for name in kept), "dropout acts"
    for recompute in ("selective", "full"):
        again = gradients(recompute, preset=preset, **dropout)
        assert again.keys() == kept.keys()
        for name, gradient in kept.items():
            torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-7, msg=f"{recompute} {name}")


class Calls(TorchDispatchMode):
    """Counts the operators that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_selective_recomputation_repeats_no_product(preset: str) -> None:
    def calls(recompute: str) -> Counter[str]:
        with Calls() as mode:
            gradients(recompute, preset=preset)
        return mode.count

    kept, selective, full = (calls(recompute) for recompute in ("none", "selective", "full"))
    cheap = {"gpt": "aten::native_layer_norm", "llama": "aten::silu"}[preset]
    products = ("aten::mm", "aten::addmm", "aten::_scaled_dot_product_flash_attention_for_cpu")
    assert sum(kept[name] for name in products) > 0
    for name in products:
        assert selective[name] == kept[name]
    assert sum(full[name] for name in products) > sum(kept[name] for name in products)
    assert selective[cheap] > kept[cheap]
