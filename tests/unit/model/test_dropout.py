"""Where dropout acts, how much it drops, and which of its masks differ between tensor-parallel ranks."""

from typing import Any

import pytest
import torch

from megaqk.config.model import ModelConfig
from megaqk.model.batch import plain_positions
from megaqk.model.block import residual_dropout
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.parallel.rng import DropoutRng
from megaqk.parallel.tensor_parallel import TensorParallel

VOCAB, LENGTH = 61, 16
WRITES = ("attention_write", "ffn_write")


class RecordingRng(DropoutRng):
    """Notes the sites that draw, and whether their activation is split over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, set[bool]] = {}

    def seeds(self, first_sample: int, count: int, site: str, *, sharded: bool) -> list[int]:
        self.sites.setdefault(site, set()).add(sharded)
        return super().seeds(first_sample, count, site, sharded=sharded)


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
    tokens = torch.zeros((1, LENGTH), dtype=torch.int64)
    decoder.logits((tokens, plain_positions(tokens)))
    sites = {"embedding": {False}}
    for layer in (0, 1):
        sites |= {f"layers.{layer}.{name}": {name == "attention"} for name in ("attention", *WRITES)}
    assert rng.sites == sites
    rng.sites.clear()
    decoder.eval()
    decoder.logits((tokens, plain_positions(tokens)))
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


MASKED = {"dropout": 0.3, "attention_dropout": 0.3, "num_kv_heads": 2}


@pytest.mark.parametrize(("micro_batch", "data_size"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_the_masks_of_a_sample_do_not_depend_on_the_division(micro_batch: int, data_size: int) -> None:
    """Eight samples from the hundredth on, whole and in micro-batches of several replicas."""
    samples = torch.randint(VOCAB, (8, LENGTH), generator=torch.Generator().manual_seed(0))
    shared = context(**MASKED)
    decoder = Decoder(shared)
    initialize(decoder.global_parameters(), shared, seed=5)
    shared.rng.begin_step(100, micro_batch_size=8)
    whole = decoder.logits((samples, plain_positions(samples)))
    assert not torch.allclose(whole, decoder.logits((samples, plain_positions(samples)))), "other samples, other masks"
    for data_rank in range(data_size):
        shared.rng.begin_step(100, micro_batch_size=micro_batch, data_rank=data_rank, data_size=data_size)
        for first in range(data_rank * micro_batch, 8, data_size * micro_batch):
            part = slice(first, first + micro_batch)
            ours = decoder.logits((samples[part], plain_positions(samples[part])))
            torch.testing.assert_close(ours, whole[part], rtol=1e-5, atol=1e-5)
