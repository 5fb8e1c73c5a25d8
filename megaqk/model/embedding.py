"""What stands before the first block and after the last."""

from torch import Tensor

from megaqk.model.block import residual_dropout
from megaqk.model.context import ModelContext
from megaqk.model.norms import build_norm
from megaqk.model.positions import LearnedPositions
from megaqk.model.stream import Stream, StreamLayer, split_stream
from megaqk.parallel.vocabulary import VocabParallelEmbedding


class Embedding(VocabParallelEmbedding):
    """The token embedding; in a tied model also the head."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context.rows, context.tokens, context.model.hidden_size, tp=context.tp)

    def forward(self, stream: Stream, as_head: bool = False) -> Stream:  # type: ignore[override]
        """Map token ids (B, S) to (B, S, H), or the last hidden state to this rank's logits (B, S, local tokens).

        The head is a mode of forward, not a method beside it, because ZeRO-3 fetches a module's parameters when its
        forward is called.
        """
        x, positions = split_stream(stream)
        if as_head:
            return self.logits(x)
        hidden = super().forward(x)
        return hidden if positions is None else (hidden, positions)


def tied_head(embedding: Embedding, stream: Stream) -> Tensor:
    """The head of a tied model: logits by the embedding table."""
    return embedding(stream, as_head=True)  # type: ignore[no-any-return]


class Head(Embedding):
    """The head of an untied model."""

    def forward(self, stream: Stream, as_head: bool = True) -> Stream:  # type: ignore[override]
        """Map the last hidden state to this rank's logits (B, S, local tokens)."""
        return super().forward(stream, as_head)


class EmbeddingOutput(StreamLayer):
    """Positions (if learned) and dropout between the token embedding and the first block."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.context = context
        self.positions = LearnedPositions(context) if context.model.positions == "learned" else None

    def update(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Add positions to (B, S, H); see `StreamLayer`."""
        call = self.context.rng.next_call("embedding") if self.training else 0
        if self.positions is not None:
            hidden = self.positions(hidden, positions)
        return residual_dropout(hidden, self.context, call, "embedding", training=self.training)


class FinalNorm(StreamLayer):
    """The norm before the head."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        tp = context.tp
        self.norm = build_norm(context.model, context.model.hidden_size, tp=tp, partial_gradient=tp.sequence)

    def update(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Normalise (B, S, H); see `StreamLayer`."""
        del positions
        return self.norm(hidden)  # type: ignore[no-any-return]
