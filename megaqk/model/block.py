"""One pre-norm transformer block."""

from typing import Literal

import torch
from torch import Tensor, nn

from megaqk.model.attention import Attention
from megaqk.model.batch import Stream
from megaqk.model.context import ModelContext
from megaqk.model.feed_forward import FeedForward
from megaqk.model.norms import build_norm
from megaqk.model.recomputation import recomputed
from megaqk.model.taps import TapKind
from megaqk.parallel.rng import dropout


def residual_dropout(x: Tensor, context: ModelContext, first_sample: int, site: str, *, training: bool) -> Tensor:
    """Dropout on a residual write (B, S, H), alike on all ranks unless the sequence is split over them."""
    probability = context.model.dropout
    if not training or probability == 0:
        return x
    return dropout(x, probability, context.rng.seeds(first_sample, len(x), site, sharded=context.tp.sequence))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        context: What all layers share.
        index: Global depth of the block.
    """

    def __init__(self, context: ModelContext, index: int) -> None:
        super().__init__()
        self.context = context
        self.index = index
        model, tp = context.model, context.tp
        self.attention_norm = build_norm(model, model.hidden_size, layer=index, tp=tp, partial_gradient=tp.sequence)
        self.attention = Attention(context, index)
        self.ffn_norm = build_norm(model, model.hidden_size, layer=index, tp=tp, partial_gradient=tp.sequence)
        self.ffn = FeedForward(context, index)
        self._compiled = torch.compile(self._recomputed) if context.compiled else self._recomputed

    def forward(self, stream: Stream) -> Stream:
        """Add the block's two writes to (B, S, H) and pass the positions on."""
        hidden, positions = stream
        # Counted outside the recomputed part, so that both passes draw the same dropout masks.
        drops = self.training and self.context.model.drops
        first_sample = self.context.rng.next_call(f"layers.{self.index}") if drops else 0
        # What watches or changes attention from outside does not reach into a compiled block.
        outside = self.context.taps or self.context.uniform
        function = self._recomputed if outside else self._compiled
        return function(hidden, positions, first_sample), positions

    def _recomputed(self, hidden: Tensor, positions: Tensor, first_sample: int) -> Tensor:
        recompute = self.context.recompute if self.training else "none"
        return recomputed(self._write, recompute, hidden, positions, first_sample)

    def _write(self, hidden: Tensor, positions: Tensor, first_sample: int) -> Tensor:
        self._show("attention_residual", hidden)
        write = self.attention(self.attention_norm(hidden), positions, first_sample)
        hidden = hidden + self._finished(write, "attention_write", first_sample)
        self._show("ffn_residual", hidden)
        return hidden + self._finished(self.ffn(self.ffn_norm(hidden)), "ffn_write", first_sample)

    def _finished(self, write: Tensor, kind: Literal["attention_write", "ffn_write"], first_sample: int) -> Tensor:
        if self.training and self.context.model.dropout:
            site = f"layers.{self.index}.{kind}"
            write = residual_dropout(write, self.context, first_sample, site, training=True)
        self._show(kind, write)
        return write

    def _show(self, kind: TapKind, activation: Tensor) -> None:
        if self.context.taps:
            self.context.taps.show(kind, self.index, activation)
