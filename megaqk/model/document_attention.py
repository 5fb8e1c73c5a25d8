"""Causal attention within documents that share a sample, without a dense mask."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def document_attention(query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
    """Attend causally within each document.

    On the CPU each document goes through scaled_dot_product_attention alone, which is what running the documents
    apart means and skips the work between them. On CUDA flex attention skips the same blocks in one kernel, without
    reading positions on the host.

    Args:
        query: (B, heads, S, D).
        key: (B, kv heads, S, D).
        value: (B, kv heads, S, D).
        positions: (B, S), 0 at the first token of each document.

    Returns:
        (B, heads, S, D).
    """
    if query.device.type == "cuda":
        return flex_document_attention(query, key, value, positions)
    grouped = query.shape[1] != key.shape[1]
    length = query.shape[2]
    rows = []
    for row in range(query.shape[0]):
        # A sample begins within a document as a rule: what is there of it begins at position 0 all the same.
        starts = (positions[row] == 0).nonzero().flatten().tolist()
        sizes = [end - start for start, end in zip(starts, [*starts[1:], length], strict=True)]
        parts = (torch.split(x[row : row + 1], sizes, dim=2) for x in (query, key, value))
        outputs = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            for q, k, v in zip(*parts, strict=True)
        ]
        rows.append(torch.cat(outputs, dim=2))
    return torch.cat(rows)


def flex_document_attention(query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
    """`document_attention` by flex attention and a block mask; see there."""
    documents = (positions == 0).cumsum(dim=1)

    def same_document(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        del head
        return (documents[batch, q] == documents[batch, k]) & (q >= k)

    attend, create_mask = _flex(compiled=query.device.type == "cuda")
    batch, _, length, _ = query.shape
    mask = create_mask(same_document, batch, None, length, length, device=query.device)
    return attend(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])  # type: ignore[no-any-return]


@cache
def _flex(*, compiled: bool) -> tuple[Any, Any]:
    # Compiled, neither materialises anything of size S x S; the eager form does and serves tests only.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if compiled:
        return torch.compile(flex_attention), torch.compile(create_block_mask)
    return flex_attention, create_block_mask
