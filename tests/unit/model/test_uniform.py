"""Attention replaced by the uniform causal average, against models that are edited by hand."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from megaqk.config.model import ModelConfig
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize

VOCAB, LENGTH, HEADS, WIDTH = 64, 9, 4, 6


def build(preset: str, separate_documents: bool = False, **model: Any) -> Decoder:
    settings = ModelConfig(preset=preset, num_layers=3, hidden_size=24, num_heads=HEADS, init_std=0.3, **model)  # type: ignore[arg-type]
    context = ModelContext(
        model=settings, rows=VOCAB, tokens=VOCAB, max_positions=LENGTH, separate_documents=separate_documents
    )
    decoder = Decoder(context).eval().requires_grad_(False)
    initialize(decoder.global_parameters(), context, seed=5)
    for name, parameter in decoder.global_parameters().items():
        if name.endswith("bias"):
            parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return decoder


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    positions = plain_positions(tokens)
    positions[1, 4:] -= 4
    return tokens, positions


@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (2,), (0, 3)])
@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_it_is_a_model_whose_queries_are_taken_away(preset: str, heads: tuple[int, ...]) -> None:
    decoder, edited = build(preset), build(preset)
    for name, parameter in edited.global_parameters().items():
        if name.startswith("layers.1.attention.qkv.query"):
            parameter.unflatten(0, (HEADS, WIDTH))[list(heads)] = 0
    with decoder.context.uniform.replacing(1, heads):
        assert torch.equal(decoder.logits(batch()), edited.logits(batch()))
    assert not decoder.context.uniform
    assert not torch.allclose(decoder.logits(batch()), edited.logits(batch()), atol=1e-3)


@pytest.mark.parametrize("apart", [False, True])
def test_a_head_takes_the_mean_of_all_it_sees(apart: bool) -> None:
    """Grouped heads under query-key normalisation, which no weight of zero reaches."""
    decoder = build("llama", apart, qk_norm=True, num_kv_heads=2)
    tokens, positions = batch()
    shown: dict[str, Tensor] = {}
    attention = decoder.layer("layers.1").attention
    with ExitStack() as stack:
        stack.enter_context(
            decoder.context.taps.watching("attention_residual", lambda layer, x: shown.update({f"x{layer}": x}))
        )
        stack.enter_context(
            decoder.context.taps.watching("attention_write", lambda layer, x: shown.update({f"y{layer}": x}))
        )
        stack.enter_context(decoder.context.uniform.replacing(1, [0, 1, 3]))
        decoder.logits((tokens, positions))
    weights = decoder.global_parameters()
    x = decoder.layer("layers.1").attention_norm(shown["x1"])
    value = (x @ weights["layers.1.attention.qkv.value_weight"].T).unflatten(-1, (2, WIDTH))
    mixed = torch.empty(2, LENGTH, HEADS, WIDTH)
    for sample in range(2):
        for place in range(LENGTH):
            first = place - int(positions[sample, place]) if apart else 0
            for head in range(HEADS):
                mixed[sample, place, head] = value[sample, first : place + 1, head // 2].mean(0)
    # Head 2 looks as it did.
    query, key = attention.queries_and_keys(x, positions)
    logits = query[:, 2] @ key[:, 1].mT / WIDTH**0.5
    place = torch.arange(LENGTH)
    oldest = place - positions if apart else torch.zeros(2, LENGTH)
    hidden = (place > place[:, None]) | (place < oldest[:, :, None])
    mixed[:, :, 2] = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value[:, :, 1]
    expected = mixed.flatten(2) @ weights["layers.1.attention.output.weight"].T
    torch.testing.assert_close(shown["y1"], expected, rtol=1e-4, atol=1e-5)
