"""The decoder as a list of layer specs, and as one module.

The list is what the pipeline engine distributes over stages; `Decoder` builds all of it in one process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from megaqk.model.block import Block
from megaqk.model.context import ModelContext
from megaqk.model.embedding import Embedding, EmbeddingOutput, FinalNorm, Head, tied_head
from megaqk.model.stream import Labels, Stream
from megaqk.parallel.vocabulary import mean_loss, vocab_parallel_cross_entropy


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
    forward: Callable[[Any, Stream], Tensor] | None = None


def layer_specs(context: ModelContext) -> list[LayerSpec]:
    """The decoder from token ids (B, S), with positions or without, to local logits (B, S, local tokens)."""
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


def decoder_loss(context: ModelContext) -> Callable[[Tensor, Labels], Tensor]:
    """The loss of a micro-batch from its local logits (B, S, local tokens) and its labels.

    Labels (B, S) give the mean over the labels that count. Labels with a weight give weight x their sum: where
    micro-batches have different numbers of labels that count, the weight makes the mean over micro-batches and
    data-parallel ranks the mean over the labels of the global batch, however it is divided.
    """
    first = context.tp.rank * context.tp.share(context.rows)

    def loss(logits: Tensor, labels: Labels) -> Tensor:
        target, weight = labels if isinstance(labels, tuple) else (labels, None)
        losses = vocab_parallel_cross_entropy(logits, target, first=first, tp=context.tp)
        return mean_loss(losses, target) if weight is None else losses.sum() * weight

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

    def logits(self, inputs: Stream) -> Tensor:
        """Local logits (B, S, local tokens) of token ids (B, S), alone or with positions (B, S)."""
        x = inputs
        for spec in self.specs:
            module = self.layer(spec.name)
            x = module(x) if spec.forward is None else spec.forward(module, x)
        assert isinstance(x, Tensor), "the last layer drops the positions"
        return x

    def forward(self, inputs: Stream, labels: Labels) -> Tensor:
        """Loss of a micro-batch of inputs (see `logits`) and labels (see `decoder_loss`)."""
        return self.loss(self.logits(inputs), labels)

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by global name, in the order of the list."""
        named = {}
        for name in dict.fromkeys(spec.name for spec in self.specs):
            named.update({f"{name}.{key}": value for key, value in self.layer(name).named_parameters()})
        return named
