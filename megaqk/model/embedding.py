"""What stands before the first block and after the last."""

from torch import Tensor, nn

from megaqk.model.batch import Stream
from megaqk.model.block import residual_dropout
from megaqk.model.context import ModelContext
from megaqk.model.norms import build_norm
from megaqk.model.parameters import ParameterRole
from megaqk.model.positions import LearnedPositions
from megaqk.parallel.vocabulary import VocabParallelEmbedding


class Embedding(VocabParallelEmbedding):
    """The token embedding; in a tied model also the head.

    Args:
        context: What all layers share.
        multiplies: Whether the table is used as a head.
    """

    def __init__(self, context: ModelContext, multiplies: bool) -> None:
        role = ParameterRole(projection="embedding", layer=None, init="vocabulary", decay=True, multiplies=multiplies)
        super().__init__(context.rows, context.tokens, context.model.hidden_size, tp=context.tp, role=role)

    def forward(self, stream: Stream, as_head: bool = False) -> Stream | Tensor:  # type: ignore[override]
        """Map token ids (B, S) to (B, S, H), or the last hidden state to this rank's logits (B, S, local rows).

        The head is a mode of forward, not a method beside it, because ZeRO-3 fetches a module's parameters when its
        forward is called.
        """
        x, positions = stream
        return self.logits(x) if as_head else (super().forward(x), positions)


def tied_head(embedding: Embedding, stream: Stream) -> Tensor:
    """The head of a tied model: logits by the embedding table."""
    return embedding(stream, as_head=True)  # type: ignore[no-any-return]


class Head(Embedding):
    """The head of an untied model."""

    def forward(self, stream: Stream, as_head: bool = True) -> Stream | Tensor:  # type: ignore[override]
        """Map the last hidden state to this rank's logits (B, S, local rows)."""
        return super().forward(stream, as_head)


class EmbeddingOutput(nn.Module):
    """Positions (if learned) and dropout between the token embedding and the first block."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.context = context
        self.positions = LearnedPositions(context) if context.model.positions == "learned" else None

    def forward(self, stream: Stream) -> Stream:
        """Add position vectors to (B, S, H) and pass the positions on."""
        hidden, positions = stream
        if self.positions is not None:
            hidden = self.positions(hidden, positions)
        drops = self.training and self.context.model.drops
        first_sample = self.context.rng.next_call("embedding") if drops else 0
        return residual_dropout(hidden, self.context, first_sample, "embedding", training=self.training), positions


class FinalNorm(nn.Module):
    """The norm before the head."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        model, tp = context.model, context.tp
        self.norm = build_norm(model, model.hidden_size, layer=None, tp=tp, partial_gradient=tp.sequence)

    def forward(self, stream: Stream) -> Stream:
        """Normalise (B, S, H) and pass the positions on."""
        hidden, positions = stream
        return self.norm(hidden), positions
