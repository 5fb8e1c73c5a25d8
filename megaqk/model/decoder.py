"""The decoder as a list of layer specs, as one module, and as a list of its parameters.

The specs are what the pipeline engine distributes over stages; `Decoder` builds all of them in one process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megaqk.config.root import Config
from megaqk.model.batch import Labels, Stream
from megaqk.model.block import Block
from megaqk.model.context import ModelContext, model_context
from megaqk.model.embedding import Embedding, EmbeddingOutput, FinalNorm, Head, tied_head
from megaqk.model.parameters import ParameterInfo, role_of
from megaqk.parallel.cross_entropy import vocab_parallel_cross_entropy
from megaqk.parallel.sharding import sharding_of
from megaqk.parallel.vocabulary import local_tokens


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
    """The decoder from token ids and positions (B, S) to this rank's logits (B, S, local rows), padding last."""
    model = context.model
    tied = model.tied_embedding
    specs = [
        LayerSpec(name="embedding", module=Embedding, arguments=(context, tied), tied=tied),
        LayerSpec(name="embedding_output", module=EmbeddingOutput, arguments=(context,)),
    ]
    specs += [
        LayerSpec(name=f"layers.{index}", module=Block, arguments=(context, index)) for index in range(model.num_layers)
    ]
    specs.append(LayerSpec(name="final_norm", module=FinalNorm, arguments=(context,)))
    if tied:
        specs.append(
            LayerSpec(name="embedding", module=Embedding, arguments=(context, True), tied=True, forward=tied_head)
        )
    else:
        specs.append(LayerSpec(name="head", module=Head, arguments=(context, True)))
    return specs


def stage_bounds(layers_per_stage: Sequence[tuple[int, int]]) -> list[int]:
    """First spec of each pipeline stage, and the end of the last, from the blocks of each stage.

    The first stage also holds what precedes the blocks, the last what follows them.

    Args:
        layers_per_stage: (first, end) block of each stage.
    """
    before, after = 2, 2  # embedding and embedding_output; final_norm and the head
    *inner, last = (before + end for _, end in layers_per_stage)
    return [0, *inner, last + after]


def decoder_loss(context: ModelContext) -> Callable[[Tensor, Labels], Tensor]:
    """The loss of a micro-batch from its logits (B, S, local rows), which it uses up: weight x the sum over its labels.

    Micro-batches may have different numbers of labels that count. The weight (micro-batches x data-parallel size) /
    (labels of the global batch that count) makes the mean over micro-batches and data-parallel ranks the mean over
    the labels of the global batch, however it is divided. A sum that is not finite gets gradients that are not either,
    so that whatever looks at the gradient sees it too.
    """
    tp = context.tp
    tokens, first = local_tokens(context.tokens, context.rows, tp), tp.rank * tp.share(context.rows)

    def loss(logits: Tensor, labels: Labels) -> Tensor:
        target, weight = labels
        losses = vocab_parallel_cross_entropy(
            logits, target, first=first, tokens=tokens, tp=tp, compiled=context.compiled
        )
        total = losses.sum()
        # A lost target alone leaves a finite gradient. Decided on the device: nobody waits for it.
        return total * torch.where(total.detach().isfinite(), weight, torch.nan)

    return loss


class Decoder(nn.Module):
    """The whole list in one process (or one tensor-parallel group)."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.context = context
        self.specs = layer_specs(context)
        self.loss = decoder_loss(context)
        self.tokens = local_tokens(context.tokens, context.rows, context.tp)
        self.modules_by_name = nn.ModuleDict()
        for spec in self.specs:
            key = spec.name.replace(".", "_")
            if key not in self.modules_by_name:
                self.modules_by_name[key] = spec.module(*spec.arguments)

    def layer(self, name: str) -> nn.Module:
        """The module of a spec."""
        return self.modules_by_name[name.replace(".", "_")]

    def logits(self, inputs: Stream) -> Tensor:
        """This rank's logits (B, S, local tokens), without padding, of token ids and positions (B, S)."""
        return self.through(self.specs, inputs)[..., : self.tokens]  # type: ignore[no-any-return]

    def through(self, specs: Sequence[LayerSpec], x: Any) -> Any:
        """What some of the layers, in order, make of the output of the one before them."""
        for spec in specs:
            module = self.layer(spec.name)
            x = module(x) if spec.forward is None else spec.forward(module, x)
        return x

    def forward(self, inputs: Stream, labels: Labels) -> Tensor:
        """Loss of a micro-batch of inputs (see `logits`) and labels (see `decoder_loss`)."""
        return self.loss(self.through(self.specs, inputs), labels)

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by global name, in the order of the list."""
        named = {}
        for name in dict.fromkeys(spec.name for spec in self.specs):
            named.update({f"{name}.{key}": value for key, value in self.layer(name).named_parameters()})
        return named


def parameter_inventory(config: Config, *, rows: int) -> tuple[ParameterInfo, ...]:
    """Every parameter of the whole model, in the order of the layers.

    The layers are built on the meta device, so this costs no memory, and the list cannot differ from the model.

    Args:
        config: The run.
        rows: Rows of the embedding table, padding included.
    """
    with torch.device("meta"):
        decoder = Decoder(model_context(config, tokens=rows, rows=rows))
    names = [spec.name for spec in decoder.specs]
    return tuple(
        ParameterInfo(
            name=f"{module}.{key}",
            shape=sharding_of(parameter).shape,
            shard_dim=sharding_of(parameter).dim,
            role=role_of(parameter),
            places=tuple(place for place, name in enumerate(names) if name == module),
        )
        for module in dict.fromkeys(names)
        for key, parameter in decoder.layer(module).named_parameters()
    )
