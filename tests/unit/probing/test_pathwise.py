"""The decomposition against numbers worked out by hand, and against dense logits of every corner."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from megaqk.probing import pathwise
from megaqk.probing.pathwise import Corners, decompose


def test_two_tokens_by_hand() -> None:
    # q = w x, k = x; x from (1, 2) to (1, 3), w from 1 to 2. Visible entries 00, 10, 11:
    # S_a = 1, 2, 4; S(x_a, W_b) = 2, 4, 8; S(x_b, W_a) = 1, 3, 9; S_b = 2, 6, 18.
    before, after = (torch.tensor(x, dtype=torch.float64).view(1, 1, 2, 1) for x in ([1, 2], [1, 3]))
    query, key = Corners(before, 2 * before, after, 2 * after), Corners(before, before, after, after)
    change = decompose(query, key, (query.after, key.after))
    sizes, shares = change.root_mean_squares(), change.shares()
    changes = {"total": (1, 4, 14), "weights": (1, 2, 4), "features": (0, 1, 5), "interaction": (0, 1, 5)}
    for name, entries in changes.items():
        assert float(sizes[name]) == pytest.approx(sqrt(sum(x * x for x in entries) / 3))
    assert {name: float(share) for name, share in shares.items()} == pytest.approx(
        {"weights": 65 / 213, "features": 74 / 213, "interaction": 74 / 213}
    )
    assert change.closure() < 1e-15


BATCH, HEADS, KV_HEADS, LENGTH, WIDTH = 2, 4, 2, 11, 6


def corners(heads: int, seed: int) -> Corners:
    draw = torch.Generator().manual_seed(seed)
    parts = torch.randn(4, BATCH, heads, LENGTH, WIDTH, dtype=torch.float64, generator=draw)
    return Corners(parts[0], *(parts[0] + 0.1 * parts[1:]))


def dense(query: Tensor, key: Tensor, documents: Tensor | None) -> Tensor:
    """Logits (B, heads, S, S), 0 where a token does not look."""
    logits = torch.einsum("bhid,bhjd->bhij", query, key.repeat_interleave(HEADS // KV_HEADS, 1)) / sqrt(WIDTH)
    if documents is not None:
        number = (documents == 0).cumsum(1)
        logits = logits * (number[:, None, :, None] == number[:, None, None, :])
    return logits.tril()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 99])
def test_parts_are_those_of_dense_logits(apart: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathwise, "_BLOCK_ELEMENTS", rows * BATCH * HEADS * LENGTH)
    documents = torch.arange(LENGTH).repeat(BATCH, 1)
    documents[1, 4:] -= 4
    shown = documents if apart else None
    query, key = corners(HEADS, 0), corners(KV_HEADS, 1)
    change = decompose(query, key, (query.after, key.after), shown)
    before, weights, features, after = (dense(q, k, shown) for q, k in zip(query, key, strict=True))
    expected = {
        "total": after - before,
        "weights": weights - before,
        "features": features - before,
        "interaction": after - weights - features + before,
    }
    seen = dense(torch.ones_like(query.before), torch.ones_like(key.before), shown)[:, 0] > 0
    assert change.entries == int(seen.sum()) == (2 * 66 if not apart else 66 + 10 + 28)
    for of, scale, dims in ((change, 1, (0, 2, 3)), (change.together(), HEADS, (0, 1, 2, 3))):
        entries = change.entries * scale
        whole = expected["total"].square().sum(dims)
        for name, part in expected.items():
            size = (part.square().sum(dims) / entries).sqrt().view(-1)
            torch.testing.assert_close(of.root_mean_squares()[name], size, rtol=1e-10, atol=0)
            if name != "total":
                share = ((part * expected["total"]).sum(dims) / whole).view(-1)
                torch.testing.assert_close(of.shares()[name], share, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sum(of.shares().values()), torch.ones(HEADS // scale, dtype=torch.float64))
    assert change.closure() < 1e-13


def test_closure_is_a_check() -> None:
    query, key = corners(HEADS, 0), corners(KV_HEADS, 1)
    wrong = query.after.clone()
    wrong[0, 1, 3] *= 1 + 1e-7
    assert decompose(query, key, (wrong, key.after)).closure() > 1e-9


def test_logits_that_stay_close_too() -> None:
    query, key = (Corners(one.before, one.before, one.before, one.before) for one in (corners(4, 0), corners(2, 1)))
    change = decompose(query, key, (query.after * (1 + 1e-16), key.after))
    assert change.closure() < 1e-10
    assert all(share.isnan().all() for share in change.shares().values())
