"""ZeRO-3's partitioned parameters."""

import contextlib
from typing import Any

import deepspeed
from torch import nn


def zero3_init(settings: dict[str, Any], grid: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which modules are partitioned as they are built, so that no rank ever holds the whole model.

    Args:
        settings: The DeepSpeed configuration; nothing happens below ZeRO-3.
        grid: DeepSpeed's view of the topology.
    """
    if settings["zero_optimization"]["stage"] < 3:
        return contextlib.nullcontext()
    return deepspeed.zero.Init(  # type: ignore[no-any-return]
        data_parallel_group=grid.get_data_parallel_group(),
        config_dict_or_path=settings,
        mpu=grid,
        mem_efficient_linear=False,  # it would replace torch's linear for the whole process
    )


def gathered_parameter(parameter: nn.Parameter, *, write: bool = False) -> contextlib.AbstractContextManager[Any]:
    """A context in which a parameter has all of its tensor-parallel shard; every data-parallel rank must enter it.

    Args:
        parameter: Any parameter, partitioned or not.
        write: Whether to keep what the first data-parallel rank writes.
    """
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    return deepspeed.zero.GatheredParameters(  # type: ignore[no-any-return]
        [parameter], modifier_rank=0 if write else None
    )
