"""The planned optimizer groups over what one rank owns of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from megaqk.optim.groups import ParameterGroup, groups_missing_on
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.tensor_parallel import TensorParallel

PLACEHOLDER_SIZE = 64
"""Elements of the inert tensor that stands for a parameter group on a pipeline stage that owns none of it."""


def local_groups(
    groups: Sequence[ParameterGroup], parameters: Mapping[str, nn.Parameter], module: nn.Module, tp: TensorParallel
) -> list[dict[str, Any]]:
    """What an optimizer is built over: the same groups in the same order on every rank, none of them empty.

    DeepSpeed drops a group that is empty on a rank and then reduces one gradient norm for each group that is left,
    which hangs where the ranks' counts differ. A placeholder keeps such a group: zeros without a gradient, in no
    forward pass.

    Args:
        groups: The plan.
        parameters: This rank's parameters by global name.
        module: The model of this rank, which takes the placeholders so that they move with it.
        tp: The tensor-parallel group.
    """
    placeholders = nn.ParameterDict()
    for name in groups_missing_on(groups, parameters):
        placeholder = new_parameter((PLACEHOLDER_SIZE,), tp)
        # As DeepSpeed marks what only this stage has.
        placeholder.ds_pipe_replicated = False  # type: ignore[attr-defined]
        nn.init.zeros_(placeholder)
        placeholders[name.replace(".", "_")] = placeholder
    if placeholders:
        module.placeholders = placeholders
    local = []
    for group in groups:
        members = [parameters[name] for name in group.parameters if name in parameters]
        members = members or [placeholders[group.name.replace(".", "_")]]
        local.append({"name": group.name, "optimizer": group.optimizer, "params": members, "weight_decay": 0.0})
    return local
