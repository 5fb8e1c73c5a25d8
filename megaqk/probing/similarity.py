"""How alike two sets of features of the same tokens are."""

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414), in fp64 and H x H memory.

    With columns centred it is |X^T Y|^2 / (|X^T X| |Y^T Y|), which neither rotation nor scale of either changes: the
    same number as from the N x N similarities of the tokens.

    Args:
        x: Features (N, H).
        y: Features (N, H') of the same tokens.

    Returns:
        A scalar in [0, 1]; not a number where one of them is the same for all tokens.
    """
    x, y = (features.double() - features.double().mean(0) for features in (x, y))
    cross, own_x, own_y = (torch.linalg.matrix_norm(left.mT @ right) for left, right in ((x, y), (x, x), (y, y)))
    alignment: Tensor = cross.square() / (own_x * own_y)
    return alignment


def mean_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mean over tokens of the cosine between their features (N, H), in fp64."""
    return F.cosine_similarity(x.double(), y.double(), dim=-1).mean()
