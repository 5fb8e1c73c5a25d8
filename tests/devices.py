"""The device that `tests/gpu` runs on: `cuda`, or a stand-in for it, as the variable TEST_DEVICE says.

`pretend` is host memory that passes for another device (`tests/pretend.py`), `cpu` the plain CPU. Whatever runs there
shows that the tests themselves are right; what only CUDA has is skipped.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from tests.distributed import driver
from tests.harness import run_distributed

NAME = os.environ.get("TEST_DEVICE", "cuda")
ON_CUDA = NAME == "cuda"
PATIENCE = 1 if ON_CUDA else 5  # with a stand-in's speed
DROPOUT = 0.0 if NAME == "pretend" else 0.1  # it has no random generator


def missing() -> str | None:
    """Why the tests cannot run on this device, in one line."""
    if NAME not in ("cuda", "pretend", "cpu"):
        return f"DEVICE = {NAME}: must be cuda, pretend or cpu"
    if ON_CUDA and not torch.cuda.is_available():
        return "no CUDA device here: `make test-gpu DEVICE=pretend` (or DEVICE=cpu) runs these tests on a stand-in"
    return None


def start(*, staged: bool = False) -> torch.device:
    """Make the device this process's; on a rank before its world is connected.

    Args:
        staged: Whether ranks share it, so that what they tell each other goes through host memory.
    """
    os.environ["LOCAL_RANK"] = "0"  # all ranks have the one GPU
    device, key = torch.device("cpu"), ""
    if NAME == "pretend":
        from tests import pretend

        device, key = pretend.install(), "PrivateUse1"
    elif ON_CUDA:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        device, key = torch.device("cuda", 0), "CUDA"
    if staged and key:
        from tests import staging

        staging.install(key)
    return device


def settings(model: dict[str, Any], *, training: dict[str, Any] | None = None, **parallel: Any) -> dict[str, Any]:
    """`driver.settings`, not compiled unless it says so: on CUDA each case would take its time for that."""
    return driver.settings(model, training={"compile": False, **(training or {})}, **parallel)


def run_ranks(func: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """`run_distributed` with the device started on every rank: NCCL for one rank on CUDA, gloo for all else."""
    shared = world_size > 1
    # A gloo group that is there is taken; none is made where DeepSpeed is to choose. CUDA does not outlive a fork.
    options: dict[str, Any] = {"init": shared, "fork": not ON_CUDA, "timeout": timeout * PATIENCE}
    return run_distributed(_on_device, world_size, func, args, shared, **options)


def _on_device(func: Callable[..., Any], args: tuple[Any, ...], staged: bool) -> Any:
    start(staged=staged)
    return func(*args)
