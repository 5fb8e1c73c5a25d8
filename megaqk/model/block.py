"""One pre-norm transformer block."""

from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megaqk.model.attention import Attention
from megaqk.model.context import ModelContext
from megaqk.model.feed_forward import FeedForward
from megaqk.model.norms import build_norm
from megaqk.model.stream import StreamLayer


def residual_dropout(x: Tensor, context: ModelContext, call: int, site: str, *, training: bool) -> Tensor:
    """Dropout on a residual write (B, S, H), alike on all ranks unless the sequence is split over them."""
    if not training or context.model.dropout == 0:
        return x
    with context.rng.scope(call, site, x.device, sharded=context.tp.sequence):
        return F.dropout(x, context.model.dropout)


class Block(StreamLayer):
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
        self.attention_norm = build_norm(model, model.hidden_size, tp=tp, partial_gradient=tp.sequence)
        self.attention = Attention(context)
        self.ffn_norm = build_norm(model, model.hidden_size, tp=tp, partial_gradient=tp.sequence)
        self.ffn = FeedForward(context)

    def update(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Add the block's two writes to (B, S, H); see `StreamLayer`."""
        # Counted outside the recomputed part, so that both passes draw the same dropout masks.
        call = self.context.rng.next_call(f"layers.{self.index}") if self.training else 0
        if self.context.recompute == "full" and self.training:
            return checkpoint(  # type: ignore[no-any-return]
                self._forward, hidden, positions, call, use_reentrant=False, preserve_rng_state=False
            )
        return self._forward(hidden, positions, call)

    def _forward(self, hidden: Tensor, positions: Tensor | None, call: int) -> Tensor:
        write = self.attention(self.attention_norm(hidden), positions, call)
        hidden = hidden + residual_dropout(write, self.context, call, "attention_write", training=self.training)
        write = self.ffn(self.ffn_norm(hidden))
        return hidden + residual_dropout(write, self.context, call, "ffn_write", training=self.training)
