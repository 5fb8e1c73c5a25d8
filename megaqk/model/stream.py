"""What flows from layer to layer: the residual stream, and with it the positions where documents are kept apart."""

from torch import Tensor, nn

Stream = Tensor | tuple[Tensor, Tensor]
"""(B, S, H), alone or with positions (B, S): integers that count from 0 in each document.

Positions are given where documents that share a sample must not see each other. They travel with the stream because
every pipeline stage needs them.
"""

Labels = Tensor | tuple[Tensor, Tensor]
"""(B, S), alone or with a scalar weight: see `megaqk.model.decoder.decoder_loss`."""

Batch = tuple[Stream, Labels]
"""A micro-batch: token ids (B, S), alone or with positions (B, S), and labels."""


def split_stream(stream: Stream) -> tuple[Tensor, Tensor | None]:
    """The hidden state and the positions, if there are any."""
    return stream if isinstance(stream, tuple) else (stream, None)


class StreamLayer(nn.Module):
    """A layer that maps the hidden state and passes the positions on."""

    def forward(self, stream: Stream) -> Stream:
        """Map (B, S, H) to (B, S, H); token ids (B, S) come first."""
        hidden, positions = split_stream(stream)
        hidden = self.update(hidden, positions)
        return hidden if positions is None else (hidden, positions)

    def update(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """What the layer does to the hidden state.

        Args:
            hidden: (B, S, H); S is this rank's part of the sequence under sequence parallelism.
            positions: (B, S) over the whole sequence, or None for 0 to S - 1.
        """
        raise NotImplementedError
