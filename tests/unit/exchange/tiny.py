"""Tiny models of every combination of ingredients, and their tensors."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.config.model import ModelConfig
from megaqk.exchange.lazy import LazyTensor
from megaqk.exchange.transformers_model import TransformersModel, as_transformers
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize

TOKENS, ROWS, LENGTH = 67, 72, 20
INGREDIENTS: dict[str, tuple[Any, ...]] = {
    "norm": ("layernorm", "rmsnorm"),
    "bias": (True, False),
    "feed_forward": ("gelu", "relu_squared", "swiglu", "geglu"),
    "positions": ("learned", "rotary", "none"),
    "qk_norm": (False, True),
    "tied_embedding": (True, False),
}
SHAPES = {
    "every head its own": {"hidden_size": 32, "num_heads": 4},
    "grouped": {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2},
    "grouped, wide": {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 10},
    "not divided": {"hidden_size": 30, "num_heads": 4, "num_kv_heads": 1, "head_dim": 8},
}


def combinations() -> Iterator[dict[str, Any]]:
    for values in itertools.product(*INGREDIENTS.values()):
        yield dict(zip(INGREDIENTS, values, strict=True))


def tiny(shape: str = "every head its own", **keys: Any) -> ModelConfig:
    return ModelConfig(
        **{"num_layers": 2, "ffn_hidden_size": 48, "init_std": 0.2, "rotary_base": 500.0, **SHAPES[shape], **keys}
    )


def decoder_of(model: ModelConfig) -> Decoder:
    """With weights large enough that every part matters, and biases and norms that are not 0 and 1."""
    context = ModelContext(model=model, rows=ROWS, tokens=TOKENS, max_positions=LENGTH)
    decoder = Decoder(context).eval().requires_grad_(False)
    parameters = decoder.global_parameters()
    initialize(parameters, context, seed=3)
    generator = torch.Generator().manual_seed(7)
    for parameter in parameters.values():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return decoder


def lazy(tensor: Tensor) -> LazyTensor:
    shape = tuple(tensor.shape)
    return LazyTensor(shape, lambda box: box.within(Box.whole(shape), tensor).clone())


def tensors_of(decoder: Decoder) -> dict[str, LazyTensor]:
    """Without the padding of the vocabulary."""
    named = {name: parameter.detach() for name, parameter in decoder.global_parameters().items()}
    return {name: lazy(x[:TOKENS] if len(x) == ROWS else x) for name, x in named.items()}


def described(decoder: Decoder, *, remote_code: bool = False) -> TransformersModel:
    model = decoder.context.model
    return as_transformers(
        model, tensors_of(decoder), tokens=TOKENS, positions=LENGTH, eod_id=1, remote_code=remote_code
    )


def some_ids(tokens: int = TOKENS) -> Tensor:
    return torch.randint(tokens, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def our_logits(decoder: Decoder, ids: Tensor) -> Tensor:
    return decoder.logits((ids, plain_positions(ids)))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def load_into(decoder: Decoder, tensors: Mapping[str, LazyTensor]) -> Decoder:
    for name, parameter in decoder.global_parameters().items():
        parameter.copy_(tensors[name].read())
    return decoder
