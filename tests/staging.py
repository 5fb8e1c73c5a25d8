"""Collectives of a device through host memory: several ranks share one GPU, which NCCL refuses, and gloo carries them.

The operators behind `torch.distributed` are replaced for the device, so that DeepSpeed's calls and ours, synchronous or
not, go the same way: copy to the host, run there, wait, copy back what was written.
"""

import functools
import warnings
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.utils._pytree import tree_leaves, tree_map_only

COLLECTIVES = [
    "allreduce_",
    "broadcast_",
    "reduce_",
    "allgather_",
    "_allgather_base_",
    "reduce_scatter_",
    "_reduce_scatter_base_",
    "send",
    "recv_",
]

_library: list[torch.library.Library] = []  # its kernels last as long as it does


def install(key: str) -> None:
    """Stage every collective of a device, for good: of the dispatch key `CUDA`, or `PrivateUse1`."""
    library = torch.library.Library("c10d", "IMPL")
    _library.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are replaced
        for name in COLLECTIVES:
            operator = getattr(torch.ops.c10d, name).default
            library.impl(name, functools.partial(_staged, operator), key, allow_override=True)


def _staged(operator: Any, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        host = [tree_map_only(Tensor, Tensor.cpu, argument) for argument in arguments]
        result = operator(*host)
        (result[-1] if isinstance(result, tuple) else result).wait()
        for declared, argument, copy in zip(operator._schema.arguments, arguments, host, strict=False):
            if declared.name.startswith("input"):
                continue  # it may overlap the output
            for ours, theirs in zip(tree_leaves(argument), tree_leaves(copy), strict=True):
                if isinstance(ours, Tensor):
                    ours.data.copy_(theirs)  # as a kernel writes, which autograd does not take for a change
    # The caller waits again, which a send of gloo does not take.
    done: torch.futures.Future[None] = torch.futures.Future()
    done.set_result(None)
    work = _create_work_from_future(done).boxed()
    return (arguments[0], work) if isinstance(result, tuple) else work
