"""Largest logits in blocks of rows, against the products as a whole; and the factors that follow from them."""

import pytest
import torch

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.model.core_attention import causal_scores
from megaqk.probing import attention_statistics
from megaqk.probing.attention_statistics import largest_logits
from megaqk.training.hooks.head_scaling import shrink_factors


@pytest.mark.parametrize("apart", [False, True], ids=["whole-samples", "documents-apart"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch, apart: bool, rows: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, 13, 4), torch.randn(2, 3, 13, 4)
    documents = torch.stack([torch.arange(13) % 5, torch.arange(13) % 8]) if apart else None
    # What no token may look at is larger than anything else.
    query[:, :, 0] *= 100
    query[:, :, 0] -= 1000 * key[:, :, 0].repeat_interleave(2, dim=1)
    monkeypatch.setattr(attention_statistics, "BLOCK_ELEMENTS_ON_CPU", rows * 2 * 6 * 13)
    found = largest_logits(query, key, documents)
    torch.testing.assert_close(found, causal_scores(query, key, documents).amax((0, 2, 3)))
    assert (found < 50).all()


def test_only_what_is_above_the_threshold_shrinks() -> None:
    maxima = torch.tensor([[-50.0, 0.0, 10.0, 40.0], [20.0, 40.0, 5.0, 3.0]])
    query, key = shrink_factors(maxima, 10.0, kv_heads=4)
    gamma = [[1.0, 1.0, 1.0, 0.25], [0.5, 0.25, 1.0, 1.0]]
    assert (query * key).tolist() == [pytest.approx(row) for row in gamma]
    torch.testing.assert_close(query, key)
    # Exactly 1, a negative maximum included.
    assert query[0, :3].tolist() == key[0, :3].tolist() == [1.0] * 3


def test_query_heads_that_share_a_key_head_shrink_by_their_own_gamma() -> None:
    query, key = shrink_factors(torch.tensor([[20.0, 40.0, -7.0, 3.0], [40.0, -1.0, 10.0, 10.1]]), 10.0, kv_heads=2)
    assert key.tolist() == [pytest.approx([0.5, 1.0]), pytest.approx([0.5, (10 / 10.1) ** 0.5])]
    shrunk = query * key.repeat_interleave(2, dim=1)
    assert shrunk.tolist() == [pytest.approx([0.5, 0.25, 1, 1]), pytest.approx([0.25, 1, 1, 10 / 10.1])]
    assert query[0, 2:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"qk_clip": {"threshold": 0.0}}, "qk_clip.threshold = 0.0: must be above 0.0, or null"),
        (
            {"qk_clip": {"threshold": 100.0}, "model": {"qk_norm": True}},
            "qk_clip.threshold = 100.0: must be null with model.qk_norm = true, which undoes any scale",
        ),
    ],
)
def test_what_cannot_be_is_refused(sections: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_config(sections)
    assert str(error.value) == message
