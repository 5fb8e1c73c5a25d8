"""The decomposition of real blocks against logits of each corner, made by whole models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megaqk.analysis.changes import change_of_logits, pathwise_section, reading_of
from megaqk.analysis.material import Snapshot
from megaqk.analysis.passes import BlockView, block_views, mean_loss
from megaqk.config.model import ModelConfig
from megaqk.config.root import Config
from megaqk.errors import FaultError
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.core_attention import causal_scores
from megaqk.model.decoder import Decoder
from megaqk.parallel.cross_entropy import IGNORE_INDEX
from megaqk.probing.pathwise import Decomposition

VOCAB, LENGTH, LAYERS = 48, 12, 3


def model(seed: int, keys: dict[str, Any], apart: bool) -> Decoder:
    settings = ModelConfig.model_validate({"num_layers": LAYERS, "hidden_size": 24, "num_heads": 4, **keys})
    context = ModelContext(model=settings, rows=VOCAB, tokens=VOCAB, max_positions=LENGTH, separate_documents=apart)
    decoder = Decoder(context).double().eval().requires_grad_(False)
    base, drift = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    for parameter in decoder.global_parameters().values():
        # Norms and biases too are of no special value.
        parameter.normal_(0.5, 0.3, generator=base)
        parameter += 0.02 * torch.randn(parameter.shape, dtype=torch.float64, generator=drift)
    return decoder


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    positions = plain_positions(tokens)
    positions[0, 5:] -= 5
    return tokens, positions


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "keys",
    [
        {"preset": "gpt"},
        {"preset": "llama", "num_kv_heads": 2},
        {"preset": "llama", "qk_norm": True, "bias": True},
        {"preset": "gpt", "qk_norm": True, "positions": "none"},
    ],
    ids=str,
)
def test_parts_of_a_block(keys: dict[str, Any], apart: bool) -> None:
    inputs = batch()
    views = [list(block_views(model(seed, keys, apart), inputs)) for seed in (1, 2)]

    def scores(features: BlockView, weights: BlockView) -> Tensor:
        # The block of one model on the stream of another, whose norm belongs to the features.
        x = features.block.attention_norm(features.seen["attention_residual"])
        query, key = weights.block.attention.queries_and_keys(x, inputs[1])
        documents = inputs[1] if apart else None
        return causal_scores(query, key, documents).masked_fill(causal_scores(query, key, documents).isinf(), 0)

    for layer in range(LAYERS):
        a, b = views[0][layer], views[1][layer]
        change = change_of_logits(reading_of(a), reading_of(b), b, inputs[1])
        whole = scores(b, b) - scores(a, a)
        parts = {"weights": scores(a, b) - scores(a, a), "features": scores(b, a) - scores(a, a)}
        parts["interaction"] = whole - parts["weights"] - parts["features"]
        entries = (whole.square().sum((0, 2, 3)), change.entries)
        torch.testing.assert_close(change.root_mean_squares()["total"], (entries[0] / entries[1]).sqrt())
        for name, part in parts.items():
            torch.testing.assert_close(
                change.root_mean_squares()[name], (part.square().sum((0, 2, 3)) / entries[1]).sqrt(), rtol=1e-8, atol=0
            )
        assert change.closure() < 1e-10


def test_another_input_than_attention_reads_does_not_close() -> None:
    inputs = batch()
    a, b = (list(block_views(model(seed, {"preset": "gpt"}, False), inputs)) for seed in (1, 2))
    wrong = change_of_logits(reading_of(a[1]), reading_of(b[2]), b[1], inputs[1])
    assert wrong.closure() > 1e-3
    before, after = (Snapshot(step=step, tokens=0, config=Config(), checkpoint=None) for step in (10, 20))
    right = change_of_logits(reading_of(a[0]), reading_of(b[0]), b[0], inputs[1])
    lost = Decomposition(right.gram * torch.nan, right.entries)
    for change in (wrong, lost):
        with pytest.raises(FaultError, match="logits of layer 1 from step 10 to 20 miss the whole by"):
            pathwise_section(before, after, [right, change], [[1, 1], [1, 1]], {})


def test_the_loss_is_a_mean_over_labels_that_count() -> None:
    decoder, (tokens, positions) = model(1, {"preset": "gpt"}, False).float(), batch()
    labels = tokens.roll(-1, 1)
    labels[0, 3:] = IGNORE_INDEX
    expected = torch.nn.functional.cross_entropy(decoder.logits((tokens, positions)).flatten(0, 1), labels.flatten())
    assert mean_loss(decoder, (tokens, positions), labels, samples=1) == pytest.approx(float(expected), rel=1e-5)
    entering = [view.seen["attention_residual"] for view in block_views(decoder, (tokens, positions))][2]
    later = mean_loss(decoder, (entering, positions), labels, samples=2, first_block=2)
    assert later == pytest.approx(float(expected), rel=1e-5)
