"""Causal attention proper: from the queries, keys and values of the heads to mixed values."""

from collections.abc import MutableMapping, Sequence
from functools import cache
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from megaqk.parallel.rng import global_generator


def core_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    documents: Tensor | None = None,
    dropout: float = 0.0,
    seeds: Sequence[int] = (),
) -> Tensor:
    """Mix values over the positions up to each token's own.

    Args:
        query: (B, heads, S, D).
        key: (B, kv heads, S, D).
        value: (B, kv heads, S, D).
        documents: Positions (B, S), 0 at the first token of each document, where documents do not see each other;
            None lets a token see all of its sample before it.
        dropout: Share of the attention weights that is dropped; not together with `documents`.
        seeds: One for each sample, with dropout.

    Returns:
        (B, heads, S, D).
    """
    if documents is not None:
        # On CUDA flex attention skips the work between documents in one kernel, without reading positions on the host.
        attend = flex_document_attention if query.device.type == "cuda" else document_attention
        mixed = attend(query, key, value, documents)
    elif dropout:
        mixed = _dropping_attention(query, key, value, dropout, seeds)
    else:
        mixed = _attend(query, key, value)
    return mixed


def causal_scores(query: Tensor, key: Tensor, documents: Tensor | None) -> Tensor:
    """The products (B, heads, S, S) / sqrt(D) that `core_attention` takes the softmax of, -inf where it does not look.

    For a look from outside alone: the kernels never hold them.
    """
    length, heads = query.shape[2], query.shape[1]
    scores = query @ key.repeat_interleave(heads // key.shape[1], dim=1).mT / sqrt(query.shape[-1])
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    if documents is not None:
        number = (documents == 0).cumsum(1)
        hidden = (hidden | (number.unsqueeze(2) != number.unsqueeze(1))).unsqueeze(1)
    return scores.masked_fill(hidden, -torch.inf)


def _dropping_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Sequence[int]) -> Tensor:
    # The kernel draws from the global generator: sample by sample, so that each has a mask of its own.
    samples = []
    with global_generator(query.device) as generator:
        for index, seed in enumerate(seeds):
            generator.manual_seed(seed)
            sample = slice(index, index + 1)
            samples.append(_attend(query[sample], key[sample], value[sample], dropout))
    return torch.cat(samples)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.dtype == torch.float32 and query.device.type != "cpu":
        # CUDA's only kernel for fp32 that is not S x S in memory knows no groups.
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        grouped = False
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, enable_gqa=grouped)


# As torch.compiler.disable, which would import the compiler now and not when it is needed. Its loop is over what it
# reads.
@_disable_dynamo
def document_attention(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    """`core_attention` by running each document alone, which is what keeping them apart means."""
    length = query.shape[2]
    rows = []
    for row in range(query.shape[0]):
        # A sample begins within a document as a rule: what is there of it begins at position 0 all the same.
        starts = (documents[row] == 0).nonzero().flatten().tolist()
        sizes = [end - start for start, end in zip(starts, [*starts[1:], length], strict=True)]
        parts = (torch.split(x[row : row + 1], sizes, dim=2) for x in (query, key, value))
        rows.append(torch.cat([_attend(*part) for part in zip(*parts, strict=True)], dim=2))
    return torch.cat(rows)


def flex_document_attention(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    """`core_attention` between documents by flex attention and a block mask."""
    attend, _ = _flex(compiled=query.device.type == "cuda")
    mask = document_mask(documents)
    return attend(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])  # type: ignore[no-any-return]


@_disable_dynamo
def document_mask(documents: Tensor) -> Any:
    """The block mask of a micro-batch's positions (B, S): made for its first layer, the same for the others."""
    mask = _masks.get(documents)
    if mask is None:
        number = (documents == 0).cumsum(dim=1)

        def same_document(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            del head
            return (number[batch, q] == number[batch, k]) & (q >= k)

        _, create_mask = _flex(compiled=documents.device.type == "cuda")
        batch, length = documents.shape
        mask = _masks[documents] = create_mask(same_document, batch, None, length, length, device=documents.device)
    return mask


# For as long as somebody holds the positions.
_masks: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()


@cache
def _flex(*, compiled: bool) -> tuple[Any, Any]:
    # Compiled, neither materialises anything of size S x S; the eager form does and serves tests only.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if compiled:
        return torch.compile(flex_attention), torch.compile(create_block_mask)
    return flex_attention, create_block_mask
