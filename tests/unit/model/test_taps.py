"""What watchers see against the same numbers computed by hand, on one rank and on each of two."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megaqk.config.model import ModelConfig
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.model.taps import TapKind
from megaqk.parallel.tensor_parallel import TensorParallel
from tests.harness import run_distributed
from tests.unit.parallel.layers import all_ranks

VOCAB, LENGTH, HEADS, KV_HEADS, WIDTH = 64, 8, 4, 2, 6
KINDS: tuple[TapKind, ...] = (
    "attention_residual",
    "attention_write",
    "ffn_residual",
    "ffn_write",
    "query",
    "key",
    "scores",
)


def build(tp: TensorParallel | None = None, **context: Any) -> tuple[Decoder, ModelContext]:
    model = ModelConfig(
        preset="llama", num_layers=2, hidden_size=24, num_heads=HEADS, num_kv_heads=KV_HEADS, qk_norm=True, init_std=0.2
    )
    tp = tp or TensorParallel()
    shared = ModelContext(model=model, rows=VOCAB, tokens=VOCAB, max_positions=LENGTH, tp=tp, **context)
    decoder = Decoder(shared)
    initialize(decoder.global_parameters(), shared, seed=5)
    return decoder.eval(), shared


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return tokens, plain_positions(tokens)


def watched(ranks: int = 1, **context: Any) -> dict[tuple[str, int], Tensor]:
    """What is seen in one forward pass on this rank, by kind and layer."""
    tp = all_ranks(sequence=False) if ranks > 1 else None
    decoder, shared = build(tp, **context)
    seen: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for kind in KINDS:
            stack.enter_context(
                shared.taps.watching(kind, lambda layer, x, kind=kind: seen.update({(kind, layer): x.clone()}))
            )
        decoder.logits(batch())
    assert not shared.taps
    return seen


def rotated(x: Tensor) -> Tensor:
    """(B, heads, S, D) by the angles of positions 0 to S - 1, as complex numbers of the two halves."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(LENGTH).float(), 10000.0 ** (-torch.arange(half).float() / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def by_hand() -> dict[tuple[str, int], Tensor]:
    decoder, _ = build()
    weights = {name: parameter.detach() for name, parameter in decoder.global_parameters().items()}
    hidden = F.embedding(batch()[0], weights["embedding.weight"])
    expected: dict[tuple[str, int], Tensor] = {}

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[name]

    for layer in (0, 1):
        block = f"layers.{layer}."
        expected["attention_residual", layer] = hidden
        x = norm(hidden, f"{block}attention_norm.weight")
        query, key, value = (
            (x @ weights[f"{block}attention.qkv.{name}_weight"].t()).unflatten(-1, (-1, WIDTH)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        query = rotated(norm(query, f"{block}attention.query_norm.weight"))
        key = rotated(norm(key, f"{block}attention.key_norm.weight"))
        expected["query", layer], expected["key", layer] = query, key
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (key, value))
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / WIDTH**0.5
        scores = scores + torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        expected["scores", layer] = scores
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        expected["attention_write", layer] = mixed @ weights[f"{block}attention.output.weight"].t()
        hidden = hidden + expected["attention_write", layer]
        expected["ffn_residual", layer] = hidden
        x = norm(hidden, f"{block}ffn_norm.weight")
        up, gate = (x @ weights[f"{block}ffn.input.{name}_weight"].t() for name in ("up", "gate"))
        expected["ffn_write", layer] = (F.silu(gate) * up) @ weights[f"{block}ffn.output.weight"].t()
        hidden = hidden + expected["ffn_write", layer]
    return expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_activations_are_those_computed_by_hand(ranks: int) -> None:
    expected = by_hand()
    for rank, seen in enumerate([watched()] if ranks == 1 else run_distributed(watched, ranks, ranks)):
        assert seen.keys() == expected.keys()
        for (kind, layer), value in expected.items():
            by_head = kind in ("query", "key", "scores")
            local = value.chunk(ranks, dim=1)[rank] if by_head else value
            torch.testing.assert_close(seen[kind, layer], local, rtol=1e-4, atol=1e-5, msg=f"{kind} of {layer}")


def test_scores_keep_documents_apart() -> None:
    tokens, positions = batch()
    positions[:, 3:] -= 3
    decoder, shared = build(separate_documents=True)
    scores: list[Tensor] = []
    with shared.taps.watching("scores", lambda layer, x: scores.append(x)):
        decoder.logits((tokens, positions))
    assert len(scores) == 2
    place = torch.arange(LENGTH)
    seen = (place[:, None] >= place) & ((place[:, None] >= 3) == (place >= 3))
    assert torch.equal(scores[0].isfinite(), seen.expand_as(scores[0]))


def test_watching_changes_nothing() -> None:
    gradients = []
    for watch in (False, True):
        decoder, shared = build()
        decoder.train()
        if watch:
            with shared.taps.watching("scores", lambda layer, x: None):
                decoder.logits(batch()).square().sum().backward()
        else:
            decoder.logits(batch()).square().sum().backward()
        gradients.append([parameter.grad for parameter in decoder.global_parameters().values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
