"""A model of ours as transformers describes it: the configuration and the tensors, whether they go to disk or not."""

from dataclasses import dataclass
from typing import Any

from megaqk.config.model import ModelConfig
from megaqk.exchange.architectures import architecture_for, refusal_of
from megaqk.exchange.architectures.architecture import Architecture, Tensors
from megaqk.exchange.architectures.own import Own
from megaqk.exchange.lazy import LazyTensor


@dataclass(frozen=True)
class TransformersModel:
    """What goes into a folder, or into memory.

    Attributes:
        architecture: Which computes it.
        config: Contents of `config.json`.
        tensors: By their names there.
    """

    architecture: Architecture
    config: dict[str, Any]
    tensors: dict[str, LazyTensor]

    @property
    def own_code(self) -> bool:
        """Whether it needs our modelling file."""
        return isinstance(self.architecture, Own)


def as_transformers(
    model: ModelConfig,
    tensors: Tensors,
    *,
    tokens: int,
    positions: int,
    eod_id: int | None,
    remote_code: bool,
    dtype: str = "float32",
) -> TransformersModel:
    """Find the architecture of a model, and put its tensors into it.

    Args:
        model: Its ingredients.
        tensors: By global name, without padding of the vocabulary.
        tokens: Its vocabulary.
        positions: The longest sequence it has seen.
        eod_id: What ends a document; None: not known.
        remote_code: Whether it gets our own code where none of transformers' architectures computes it.
        dtype: What its tensors are rounded to.

    Raises:
        UserError: None computes it; the line names the ingredient.
    """
    architecture = architecture_for(model)
    if architecture is None:
        if not remote_code:
            raise refusal_of(model)
        architecture = Own()
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **architecture.config(model, tokens=tokens, positions=positions),
        "bos_token_id": None,
        "eos_token_id": eod_id,
        "pad_token_id": None,
        "dtype": dtype,
        "megaqk_model": model.model_dump(mode="json"),
    }
    return TransformersModel(architecture, config, architecture.to_transformers(model, tensors))
