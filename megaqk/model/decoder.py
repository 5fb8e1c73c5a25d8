"""The decoder as a list of layer specs, and as one module.

The list is what the pipeline engine distributes over stages; `Decoder` builds all of it in one process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from megaqk.model.block import Block, residual_dropout
from megaqk.model.context import ModelContext
from megaqk.model.norms import build_norm
from megaqk.model.positions import LearnedPositions
from megaqk.parallel.vocabulary import VocabParallelEmbedding, mean_loss, vocab_parallel_cross_entropy


class EmbeddingOutput(nn.Module):
    """Positions (if learned) and dropout between the token embedding and the first block."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.context = context
        self.positions = LearnedPositions(context) if context.model.positions == "learned" else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, S, H) to (B, S, H)."""
        call = self.context.rng.next_call("embedding") if self.training else 0
        if self.positions is not None:
            hidden = self.positions(hidden)
        return residual_dropout(hidden, self.context, call, "embedding", training=self.training)


class Embedding(VocabParallelEmbedding):
    """The token embedding; with a tied head, also the head."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context.rows, context.tokens, context.model.hidden_size, tp=context.tp)


class Head(Embedding):
    """The output head: this rank's logits (B, S, local tokens) of the residual stream."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, S, H), or (B, S / size, H) under sequence parallelism, to logits."""
        return self.logits(hidden)


class FinalNorm(nn.Module):
    """The norm before the head."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        tp = context.tp
        self.norm = build_norm(context.model, context.model.hidden_size, tp=tp, partial_gradient=tp.sequence)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise (B, S, H)."""
        return self.norm(hidden)  # type: ignore[no-any-return]


def tied_head(embedding: VocabParallelEmbedding, hidden: Tensor) -> Tensor:
    """The head of a tied model: logits by the embedding table."""
    return embedding.logits(hidden)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer of the list.

    Attributes:
        name: Prefix of its parameters' global names.
        module: The class to build.
        arguments: What to build it from.
        tied: Whether this layer and the others of the same name are one module at several places.
        forward: How a tied module is called here, if not by its own forward.
    """

    name: str
    module: type[nn.Module]
    arguments: tuple[Any, ...]
    tied: bool = False
    forward: Callable[[Any, Tensor], Tensor] | None = None


def layer_specs(context: ModelContext) -> list[LayerSpec]:
    """The decoder from token ids (B, S) to local logits (B, S, local tokens)."""
    model = context.model
    tied = model.tied_embedding
    specs = [
        LayerSpec(name="embedding", module=Embedding, arguments=(context,), tied=tied),
        LayerSpec(name="embedding_output", module=EmbeddingOutput, arguments=(context,)),
    ]
    specs += [
        LayerSpec(name=f"layers.{index}", module=Block, arguments=(context, index)) for index in range(model.num_layers)
    ]
    specs.append(LayerSpec(name="final_norm", module=FinalNorm, arguments=(context,)))
    if tied:
        specs.append(LayerSpec(name="embedding", module=Embedding, arguments=(context,), tied=True, forward=tied_head))
    else:
        specs.append(LayerSpec(name="head", module=Head, arguments=(context,)))
    return specs


def decoder_loss(context: ModelContext) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function: (local logits (B, S, local tokens), labels (B, S)) to the mean loss of the micro-batch."""
    first = context.tp.rank * context.tp.share(context.rows)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return mean_loss(vocab_parallel_cross_entropy(logits, labels, first=first, tp=context.tp), labels)

    return loss


class Decoder(nn.Module):
    """The whole list in one process (or one tensor-parallel group)."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.specs = layer_specs(context)
        self.loss = decoder_loss(context)
        self.modules_by_name = nn.ModuleDict()
        for spec in self.specs:
            key = spec.name.replace(".", "_")
            if key not in self.modules_by_name:
                self.modules_by_name[key] = spec.module(*spec.arguments)

    def layer(self, name: str) -> nn.Module:
        """The module of a spec."""
        return self.modules_by_name[name.replace(".", "_")]

    def logits(self, tokens: Tensor) -> Tensor:
        """Local logits (B, S, local tokens) of token ids (B, S)."""
        x = tokens
        for spec in self.specs:
            module = self.layer(spec.name)
            x = module(x) if spec.forward is None else spec.forward(module, x)
        return x

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a micro-batch of token ids and labels, both (B, S)."""
        return self.loss(self.logits(tokens), labels)

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by global name, in the order of the list."""
        named = {}
        for name in dict.fromkeys(spec.name for spec in self.specs):
            named.update({f"{name}.{key}": value for key, value in self.layer(name).named_parameters()})
        return named
