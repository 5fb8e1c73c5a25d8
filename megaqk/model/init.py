"""Initial weights that depend on the seed and the parameter's global name only."""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from megaqk.model.context import ModelContext
from megaqk.model.parameters import ParameterRole, role_of
from megaqk.parallel.rng import derive_seed
from megaqk.parallel.sharding import local_part, sharding_of

ROWS_PER_SEED = 256
"""Rows of a matrix that are drawn from one seed: a shard draws its own and little more."""


def initial_value(
    name: str, rows: tuple[int, int], shape: tuple[int, ...], role: ParameterRole, context: ModelContext, seed: int
) -> Tensor:
    """Rows [first, end) of the initial tensor of a parameter of a full shape, in fp32 on the CPU.

    Norm weights are 1, biases 0, matrices normal with deviation `init_std`; those that write to the residual stream
    are scaled by 1 / sqrt(2 x num_layers) as in GPT-2. Padding rows of the vocabulary are 0 and draw no numbers, so
    that padding does not change the model.
    """
    if role.init in ("one", "zero"):
        return torch.full((rows[1] - rows[0], *shape[1:]), float(role.init == "one"))
    std = context.model.init_std
    if context.model.init_scale_residual and role.init == "residual":
        std /= sqrt(2 * context.model.num_layers)
    first, end = rows
    value = torch.zeros(end - first, *shape[1:])
    drawn = context.tokens if role.init == "vocabulary" else shape[0]
    generator = torch.Generator()
    for block in range(first // ROWS_PER_SEED, -(-min(end, drawn) // ROWS_PER_SEED)):
        start, stop = block * ROWS_PER_SEED, min((block + 1) * ROWS_PER_SEED, drawn)
        generator.manual_seed(derive_seed(seed, name, block))
        numbers = torch.empty(stop - start, *shape[1:]).normal_(0.0, std, generator=generator)
        low, high = max(first, start), min(end, stop)
        value[low - first : high - first] = numbers[low - start : high - start]
    return value


@torch.no_grad()
def initialize(parameters: Mapping[str, nn.Parameter], context: ModelContext, seed: int) -> None:
    """Fill this rank's parameters, given by global name, with their part of the initial model."""
    for name, parameter in parameters.items():
        sharding = sharding_of(parameter)
        shape, dim, tp = sharding.shape, sharding.dim, context.tp
        share = tp.share(shape[0]) if dim == 0 else shape[0]
        first = tp.rank * share if dim == 0 else 0
        value = initial_value(name, (first, first + share), shape, role_of(parameter), context, seed)
        parameter.copy_(value if dim == 0 else local_part(value, sharding, tp))
