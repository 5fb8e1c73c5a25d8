"""The spectrum of what queries and keys are together."""

import torch
from torch import Tensor

SQUARINGS = 32
"""The norm of the 2**n-th power of a D x D matrix gives its spectral radius to a relative log(D) / 2**(n + 1)."""


def qk_singular_values(query: Tensor, key: Tensor, head_size: int) -> Tensor:
    """The largest singular value of Wq^T Wk for each head, by work on D x D matrices alone.

    The squares of the singular values of Wq^T Wk, which is as wide as the residual stream, are the eigenvalues of
    (Wq Wq^T)(Wk Wk^T). The largest comes from powers of it: nothing waits for the device, as solvers do.

    Args:
        query: Query weight (heads x D, hidden).
        key: Key weight (kv heads x D, hidden).
        head_size: D.

    Returns:
        (heads,) in fp64.
    """

    def gram(weight: Tensor) -> Tensor:
        by_head = weight.double().view(-1, head_size, weight.shape[-1])
        return by_head @ by_head.mT

    queries, keys = gram(query), gram(key)
    power = queries @ keys.repeat_interleave(len(queries) // len(keys), dim=0)
    logarithm = torch.zeros(len(queries), dtype=torch.float64, device=query.device)
    for squaring in range(SQUARINGS):
        norm = torch.linalg.matrix_norm(power).clamp(min=torch.finfo(torch.float64).tiny)
        logarithm = logarithm + norm.log() / 2**squaring
        power = power / norm[:, None, None]
        power = power @ power
    return (logarithm / 2).exp()
