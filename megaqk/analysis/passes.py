"""Passes of a batch through a model: block by block with everything in sight, and the loss with attention replaced."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from megaqk.model.batch import Stream
from megaqk.model.block import Block
from megaqk.model.decoder import Decoder
from megaqk.model.taps import TapKind
from megaqk.parallel.cross_entropy import IGNORE_INDEX

_BEFORE_BLOCKS, _AFTER_BLOCKS = 2, 2  # specs of the decoder that are no blocks


@dataclass(frozen=True, kw_only=True)
class BlockView:
    """A block in a forward pass.

    Attributes:
        block: The block.
        seen: What it shows on the way, by kind; see `TapKind`.
        after: The residual stream (B, S, H) behind it.
    """

    block: Block
    seen: dict[TapKind, Tensor]
    after: Tensor


def _keep(seen: dict[TapKind, Tensor], kind: TapKind, layer: int, activation: Tensor) -> None:
    del layer
    seen[kind] = activation


def block_views(decoder: Decoder, inputs: Stream) -> Iterator[BlockView]:
    """Run a batch through the blocks, one at each step of the iterator, which alone holds activations."""
    taps, blocks = decoder.context.taps, decoder.specs[_BEFORE_BLOCKS:-_AFTER_BLOCKS]
    stream: Stream = decoder.through(decoder.specs[:_BEFORE_BLOCKS], inputs)
    for spec in blocks:
        seen: dict[TapKind, Tensor] = {}
        block = decoder.layer(spec.name)
        assert isinstance(block, Block)
        with ExitStack() as stack:
            for kind in get_args(TapKind):
                if kind != "scores":
                    stack.enter_context(taps.watching(kind, partial(_keep, seen, kind)))
            stream = block(stream)
        yield BlockView(block=block, seen=seen, after=stream[0])


def mean_loss(
    decoder: Decoder, inputs: Stream, labels: Tensor, *, samples: int, first_block: int | None = None
) -> float:
    """Mean loss over the labels of a batch that count.

    Args:
        decoder: The model.
        inputs: Token ids, or the residual stream that enters `first_block`, and positions (B, S).
        labels: (B, S).
        samples: How many of the batch are run at once.
        first_block: Where to begin; None: at the embedding.
    """
    specs = decoder.specs if first_block is None else decoder.specs[_BEFORE_BLOCKS + first_block :]
    weight = 1 / (labels != IGNORE_INDEX).sum()
    parts = zip(*(torch.split(x, samples) for x in (*inputs, labels)), strict=True)
    losses = [decoder.loss(decoder.through(specs, (x, positions)), (label, weight)) for x, positions, label in parts]
    return float(torch.stack(losses).sum())


def loss_without(
    decoder: Decoder, entering: Stream, labels: Tensor, layer: int, heads: Sequence[int], samples: int
) -> float:
    """The loss with the attention of some heads of a layer replaced by the uniform causal average.

    Args:
        decoder: The model.
        entering: The residual stream (B, S, H) that enters the layer, and positions (B, S).
        labels: (B, S).
        layer: Global depth of the block.
        heads: Its query heads.
        samples: How many of the batch are run at once.
    """
    with decoder.context.uniform.replacing(layer, heads):
        return mean_loss(decoder, entering, labels, samples=samples, first_block=layer)
