"""Where DeepSpeed's optimizers keep the parts of the parameters that this rank updates.

By class (DeepSpeed 0.19.8): without ZeRO each parameter is its own master; ZeRO-1, 2 and BF16_Optimizer flatten a group
and give each data-parallel rank an equal slice; ZeRO-3 flattens its slice of every parameter, by sub-groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """A range of a parameter's local shard within a tensor that the optimizer steps.

    Attributes:
        group: Name of the optimizer's group.
        parameter: The parameter.
        first: First element of the flattened shard.
        end: One after the last.
        master: What the optimizer steps, fp32; its state is kept under it.
        at: Where the range begins in the flattened `master`, and in its state.
    """

    group: str
    parameter: nn.Parameter
    first: int
    end: int
    master: Tensor
    at: int

    def of(self, tensor: Tensor) -> Tensor:
        """The range as a flat view of `master` or of a tensor of its state."""
        return tensor.detach().view(-1)[self.at : self.at + self.end - self.first]


def base_optimizer(optimizer: Any) -> Any:
    """The optimizer that DeepSpeed's own wraps, which has the state."""
    return getattr(optimizer, "optimizer", optimizer)


def masters(optimizer: Any) -> list[tuple[str, Tensor]]:
    """Every tensor that the optimizer steps on this rank, with the name of its group; those of placeholders too."""
    groups = base_optimizer(optimizer).param_groups
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        by_sub_group = optimizer.sub_group_to_group_id
        flats = optimizer.fp32_partitioned_groups_flat
        return [(groups[by_sub_group[index]]["name"], flat) for index, flat in enumerate(flats)]
    return [(group["name"], parameter) for group in groups for parameter in group["params"]]


def fragments(optimizer: Any) -> Iterator[Fragment]:
    """Everything that this rank updates, DeepSpeed's padding left out.

    Args:
        optimizer: What DeepSpeed's engine has as `optimizer`.

    Raises:
        TypeError: It is of a class that is not known here.
    """
    groups = base_optimizer(optimizer).param_groups
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield from _stage3(optimizer)
    elif isinstance(optimizer, BF16_Optimizer):
        for index, members in enumerate(optimizer.bf16_groups):
            places = accumulate((parameter.numel() for parameter in members[:-1]), initial=0)
            whole, master = optimizer.bf16_groups_flat[index], optimizer.fp32_groups_flat_partition[index]
            process_group = optimizer.real_dp_process_group[index]
            yield from _sliced(groups[index]["name"], members, list(places), whole, master, process_group)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        for index, members in enumerate(optimizer.round_robin_bit16_groups):
            places, whole = optimizer.round_robin_bit16_offsets[index], optimizer.bit16_groups_flat[index]
            master = optimizer.single_partition_of_fp32_groups[index]
            process_group = optimizer.real_dp_process_group[index]
            yield from _sliced(groups[index]["name"], members, places, whole, master, process_group)
    elif base_optimizer(optimizer) is optimizer:
        for group in groups:
            yield from (Fragment(group["name"], one, 0, one.numel(), one, 0) for one in group["params"])
    else:
        raise TypeError(f"{type(optimizer).__name__}: where it keeps its weights is not known")


def _sliced(
    group: str,
    members: Sequence[nn.Parameter],
    places: Sequence[int],
    whole: Tensor,
    master: Tensor,
    process_group: Any,
) -> Iterator[Fragment]:
    """The parts of a flattened group that fall into this rank's slice of it."""
    size = whole.numel() // dist.get_world_size(process_group)
    low = dist.get_rank(process_group) * size
    for parameter, place in zip(members, places, strict=True):
        # What DeepSpeed says of its layout is wrong in places; that the parameter lies there is not.
        assert parameter.data_ptr() == whole.data_ptr() + place * whole.element_size()
        first, end = max(place, low), min(place + parameter.numel(), low + size)
        if first < end:
            yield Fragment(group, parameter, first - place, end - place, master, first - low)


def _stage3(optimizer: DeepSpeedZeroOptimizer_Stage3) -> Iterator[Fragment]:
    groups = masters(optimizer)
    for members in optimizer.fp16_groups:
        for parameter in members:
            sub_group, at, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            low = dist.get_rank(optimizer._get_param_partition_group(parameter)) * size
            end = min(low + size, parameter.ds_numel)
            if low < end:
                group, master = groups[sub_group]
                yield Fragment(group, parameter, low, end, master, at)


def publish(optimizer: Any) -> None:
    """Bring the weights that the model computes with up to date with the masters; every rank must call it."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        # Small ones are whole on every rank, and nothing else would refresh them.
        if persistent := optimizer.persistent_parameters:
            persistent[0].all_gather(persistent)
        optimizer.invalidate_secondary_tensor()
    elif isinstance(optimizer, BF16_Optimizer | DeepSpeedZeroOptimizer):
        optimizer.update_lp_params()
