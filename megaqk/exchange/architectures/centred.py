"""LayerNorm without biases as RMSNorm: what is written to the residual stream has no mean to subtract.

The mean is taken out of the embedding's rows and of what each block writes, and of each query and key head where they
are normalised. The head still multiplies by what the table was, so the two are no longer tied.
"""

from typing import Any

from torch import Tensor

from megaqk.config.model import ModelConfig
from megaqk.exchange.architectures.architecture import Architecture, Tensors
from megaqk.exchange.lazy import LazyTensor, of_whole


class Centred(Architecture):
    """An architecture with RMSNorm for models with LayerNorm.

    Args:
        architecture: The one that computes the rest.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._inner = architecture
        self.model_type, self.class_name = architecture.model_type, architecture.class_name  # type: ignore[misc]

    def obstacles(self, model: ModelConfig) -> list[str]:
        """See `Architecture`."""
        own = ["norm"] if model.norm != "layernorm" else ["bias"] if model.bias else []
        return [*own, *(key for key in self._inner.obstacles(_centred(model)) if key not in own)]

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return self._inner.config(_centred(model), tokens=tokens, positions=positions)

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        head_dim = model.head_size

        def by_head(weight: Tensor) -> Tensor:
            heads = weight.view(-1, head_dim, weight.shape[1])
            return (heads - heads.mean(1, keepdim=True)).view_as(weight)

        def of_outputs(weight: Tensor) -> Tensor:
            return weight - weight.mean(0, keepdim=True)

        centred = dict(ours)
        centred["embedding.weight"] = of_whole(ours["embedding.weight"], lambda x: x - x.mean(1, keepdim=True))
        centred["head.weight"] = ours.get("head.weight") or ours["embedding.weight"]
        for index in range(model.num_layers):
            for name in ("attention.output.weight", "ffn.output.weight"):
                centred[f"layers.{index}.{name}"] = of_whole(ours[f"layers.{index}.{name}"], of_outputs)
            for name in ("query", "key") if model.qk_norm else ():
                weight = f"layers.{index}.attention.qkv.{name}_weight"
                centred[weight] = of_whole(ours[weight], by_head)
        return self._inner.to_transformers(_centred(model), centred)

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        return self._inner.from_transformers(config, theirs)


def _centred(model: ModelConfig) -> ModelConfig:
    return model.model_copy(update={"norm": "rmsnorm", "tied_embedding": False})
