"""Initial weights that depend on the seed and the parameter's global name only."""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from megaqk.model.context import ModelContext
from megaqk.model.inventory import projection_of
from megaqk.parallel.rng import derive_seed
from megaqk.parallel.sharding import local_part, sharding_of


def initial_value(name: str, shape: tuple[int, ...], context: ModelContext, seed: int) -> Tensor:
    """The full initial tensor of a parameter, in fp32 on the CPU.

    Norm weights are 1, biases 0, matrices normal with deviation `init_std`; those that write to the residual stream
    are scaled by 1 / sqrt(2 x num_layers) as in GPT-2. Padding rows of the vocabulary are 0 and draw no numbers, so
    that padding does not change the model.
    """
    model = context.model
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("norm.weight") else torch.zeros(shape)
    std = model.init_std
    if model.init_scale_residual and projection_of(name) in ("output", "ffn_out"):
        std /= sqrt(2 * model.num_layers)
    generator = torch.Generator().manual_seed(derive_seed(seed, name))
    if name in ("embedding.weight", "head.weight"):
        value = torch.zeros(shape)
        value[: context.tokens].normal_(0.0, std, generator=generator)
        return value
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialize(parameters: Mapping[str, nn.Parameter], context: ModelContext, seed: int) -> None:
    """Fill this rank's parameters, given by global name, with their part of the initial model."""
    for name, parameter in parameters.items():
        sharding = sharding_of(parameter)
        full = initial_value(name, sharding.shape, context, seed)
        parameter.copy_(local_part(full, sharding, context.tp))
