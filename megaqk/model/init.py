"""Initial weights that depend on the seed and the parameter's global name only."""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from megaqk.model.context import ModelContext
from megaqk.model.parameters import ParameterRole, role_of
from megaqk.parallel.rng import derive_seed
from megaqk.parallel.sharding import local_part, sharding_of


def initial_value(name: str, shape: tuple[int, ...], role: ParameterRole, context: ModelContext, seed: int) -> Tensor:
    """The full initial tensor of a parameter, in fp32 on the CPU.

    Norm weights are 1, biases 0, matrices normal with deviation `init_std`; those that write to the residual stream
    are scaled by 1 / sqrt(2 x num_layers) as in GPT-2. Padding rows of the vocabulary are 0 and draw no numbers, so
    that padding does not change the model.
    """
    if role.init in ("one", "zero"):
        return torch.full(shape, float(role.init == "one"))
    std = context.model.init_std
    if context.model.init_scale_residual and role.init == "residual":
        std /= sqrt(2 * context.model.num_layers)
    value = torch.zeros(shape)
    drawn = value[: context.tokens] if role.init == "vocabulary" else value
    drawn.normal_(0.0, std, generator=torch.Generator().manual_seed(derive_seed(seed, name)))
    return value


@torch.no_grad()
def initialize(parameters: Mapping[str, nn.Parameter], context: ModelContext, seed: int) -> None:
    """Fill this rank's parameters, given by global name, with their part of the initial model."""
    for name, parameter in parameters.items():
        sharding = sharding_of(parameter)
        full = initial_value(name, sharding.shape, role_of(parameter), context, seed)
        parameter.copy_(local_part(full, sharding, context.tp))
