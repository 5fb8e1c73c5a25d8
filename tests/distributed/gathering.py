"""Whole parameters from the parts that the ranks hold."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megaqk.parallel.sharding import sharding_of
from megaqk.training.engine import TrainingEngine
from megaqk.training.zero3 import gathered_parameter


def _gathered(parameter: nn.Parameter, engine: TrainingEngine) -> Tensor:
    """The unsharded tensor on the CPU; every rank of the tensor-parallel group must call it."""
    with gathered_parameter(parameter):
        local = parameter.detach().clone()
    dim = sharding_of(parameter).dim
    if dim is None or engine.world.tp.size == 1:
        return local.cpu()
    parts = [torch.empty_like(local) for _ in range(engine.world.tp.size)]
    dist.all_gather(parts, local.contiguous(), group=engine.world.tp.group)
    return torch.cat(parts, dim=dim).cpu()


def gather_parameters(engine: TrainingEngine) -> dict[str, Tensor] | None:
    """Every parameter of the model by global name, on rank 0; None on the others. All ranks must call it."""
    mine = {name: _gathered(parameter, engine) for name, parameter in engine.parameters.items()}
    if engine.world.size == 1:
        return mine
    owner = engine.world.coordinate.data == 0 and engine.world.coordinate.tensor == 0
    gathered: list[dict[str, Tensor] | None] | None = None
    if engine.world.rank == 0:
        gathered = [None] * engine.world.size
    dist.gather_object(mine if owner else None, gathered, dst=0)
    if gathered is None:
        return None
    return {name: value for part in gathered if part is not None for name, value in part.items()}
