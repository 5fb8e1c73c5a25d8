"""Where dropout acts, how much it drops, and which of its masks differ between tensor-parallel ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from megaqk.config.model import ModelConfig
from megaqk.model.block import residual_dropout
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.parallel.groups import TensorParallel
from megaqk.parallel.rng import DropoutRng

VOCAB, LENGTH = 61, 16


class RecordingRng(DropoutRng):
    """Notes the sites that draw, and whether their activation is split over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, set[bool]] = {}

    @contextmanager
    def scope(self, call: int, site: str, device: torch.device, *, sharded: bool) -> Iterator[None]:
        self.sites.setdefault(site, set()).add(sharded)
        with super().scope(call, site, device, sharded=sharded):
            yield


def context(rng: DropoutRng | None = None, tp: TensorParallel | None = None, **model: Any) -> ModelContext:
    architecture = ModelConfig(num_layers=2, hidden_size=24, num_heads=4, init_std=0.2, **model)
    return ModelContext(
        model=architecture,
        rows=VOCAB,
        tokens=VOCAB,
        max_positions=LENGTH,
        rng=rng or DropoutRng(),
        tp=tp or TensorParallel(),
    )


def test_a_replicated_activation_has_one_mask_and_a_split_one_its_own() -> None:
    """Other masks on replicated activations would let the ranks' copies of norms and biases drift apart."""
    rng = RecordingRng()
    shared = context(rng, dropout=0.1, attention_dropout=0.1)
    decoder = Decoder(shared)
    initialize(decoder.global_parameters(), shared, seed=5)
    decoder.logits(torch.zeros((1, LENGTH), dtype=torch.int64))
    residual = {"embedding": {False}, "attention_write": {False}, "ffn_write": {False}}
    assert rng.sites == {**residual, "attention": {True}}
    rng.sites.clear()
    decoder.eval()
    decoder.logits(torch.zeros((1, LENGTH), dtype=torch.int64))
    assert not rng.sites, "evaluation drops nothing"
    split = context(rng, TensorParallel(size=2, sequence=True), dropout=0.1)
    residual_dropout(torch.ones(1, LENGTH, 24), split, 0, "ffn_write", training=True)
    assert rng.sites == {"ffn_write": {True}}


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_share_that_is_dropped(share: float) -> None:
    dropped = residual_dropout(torch.ones(100, 100), context(dropout=share), 0, "ffn_write", training=True)
    kept = dropped[dropped != 0]
    assert 1 - kept.numel() / dropped.numel() == pytest.approx(share, abs=0.02)
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)))
