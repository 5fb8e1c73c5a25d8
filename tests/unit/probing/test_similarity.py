"""Similarity of features against its definition by the N x N similarities of the tokens."""

import pytest
import torch
from torch import Tensor

from megaqk.probing.similarity import linear_cka, mean_cosine


def features(seed: int, width: int, tokens: int = 40) -> Tensor:
    return torch.randn(tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.7


def cka_by_tokens(x: Tensor, y: Tensor) -> Tensor:
    """Hilbert-Schmidt independence criteria of the tokens' similarities, as the paper defines it."""
    centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)

    def hsic(k: Tensor, kernel: Tensor) -> Tensor:
        return torch.trace(k @ centre @ kernel @ centre) / (len(k) - 1) ** 2

    k, kernel = x @ x.T, y @ y.T
    return hsic(k, kernel) / (hsic(k, k) * hsic(kernel, kernel)).sqrt()


def test_cka_is_that_of_the_tokens() -> None:
    x = features(0, 7)
    y = torch.cat((x[:, :3] + 0.5 * features(1, 3), features(2, 2)), dim=1)
    assert 0.2 < linear_cka(x, y) < 0.95
    torch.testing.assert_close(linear_cka(x, y), cka_by_tokens(x, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(linear_cka(x.float(), y.float()), cka_by_tokens(x, y), rtol=1e-5, atol=0)


def test_cka_sees_neither_rotation_nor_scale_nor_offset() -> None:
    x, y = features(0, 7), features(1, 7)
    rotation, _ = torch.linalg.qr(features(3, 7, 7))
    torch.testing.assert_close(linear_cka(x, 5 * x @ rotation + 3), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(linear_cka(x @ rotation, -0.1 * y + 2), linear_cka(x, y))
    # A map that is not orthogonal it does see.
    assert abs(linear_cka(x * torch.arange(1, 8), y) - linear_cka(x, y)) > 1e-3


def test_cosine_is_a_mean_over_tokens() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    y = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    assert float(mean_cosine(x, y)) == pytest.approx((1 + 0.5**0.5 - 1) / 3)
