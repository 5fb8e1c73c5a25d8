"""The parameters of a configured model, known without building it."""

import torch

from megaqk.config.qk_timing import Projection
from megaqk.config.root import Config
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder
from megaqk.model.parameters import ParameterInfo
from megaqk.parallel.sharding import sharding_of

PROJECTIONS: tuple[tuple[str, Projection], ...] = (
    ("attention.qkv.query_", "query"),
    ("attention.qkv.key_", "key"),
    ("attention.qkv.value_", "value"),
    ("attention.output.", "output"),
    ("ffn.input.up_", "ffn_in"),
    ("ffn.input.gate_", "ffn_gate"),
    ("ffn.output.", "ffn_out"),
    ("norm.", "norm"),
)
"""What a part of a global name says of a parameter; all others belong to the embedding or the head."""


def projection_of(name: str) -> Projection:
    """What a timing rule calls the parameter of this global name."""
    return next((projection for part, projection in PROJECTIONS if part in name), "embedding")


def layer_of(name: str) -> int | None:
    """Global depth of the block that owns the parameter of this global name."""
    prefix, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if prefix == "layers" else None


def parameter_inventory(config: Config, *, rows: int) -> tuple[ParameterInfo, ...]:
    """Every parameter of the whole model, in the order of the layers.

    The layers are built on the meta device, so this costs no memory, and the list cannot differ from the model.

    Args:
        config: The run.
        rows: Rows of the embedding table, padding included.
    """
    with torch.device("meta"):
        decoder = Decoder(model_context(config, tokens=rows, rows=rows))
    return tuple(
        ParameterInfo(
            name=name,
            shape=sharding_of(parameter).shape,
            layer=layer_of(name),
            projection=projection_of(name),
            shard_dim=sharding_of(parameter).dim,
        )
        for name, parameter in decoder.global_parameters().items()
    )
