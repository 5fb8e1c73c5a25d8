"""Which optimizer updates which parameters: AdamW and its implementations, and others beside it."""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from megaqk.config.optimization import OptimizerConfig
from megaqk.errors import UserError
from megaqk.model.parameters import ParameterInfo

ADAMW = "adamw"
"""Name of the owner of what no other optimizer owns."""

STALE_SECONDS = 600.0
"""No build of a DeepSpeed operator takes that long."""


class OptimizerOwner(Protocol):
    """An optimizer beside AdamW.

    ZeRO cuts the tensors of a group up into flat parts, so unless `parallel.zero_stage` is 0 it must treat each
    element alike, whatever tensor it is from.

    Attributes:
        name: Short and unique; ends the names of its groups.
        state: What it keeps for each element of a parameter, by its own names, in fp32.
    """

    name: str
    state: tuple[str, ...]

    def owns(self, parameter: ParameterInfo) -> bool:
        """Whether it updates a parameter, going by its role."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over these groups, which carry their own `lr` and `weight_decay` at each step."""


class AdamW:
    """AdamW in the configured implementation.

    Attributes:
        description: The implementation, for logs and to compare with a checkpoint's.
    """

    name = ADAMW
    state: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, config: OptimizerConfig, device: torch.device) -> None:
        self.description, self._factory = _implementation(config, device)

    def owns(self, parameter: ParameterInfo) -> bool:
        """All that is left."""
        del parameter
        return True

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over these groups."""
        return self._factory(groups)


class _Uncompiled(torch.optim.Optimizer):
    """Torch's optimizer without the marks for torch's compiler.

    What bears them imports the compiler when it is first called, which takes as long as the import of torch itself.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class TorchAdamW(_Uncompiled, torch.optim.AdamW):
    """Torch's AdamW."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class JointOptimizer(_Uncompiled):
    """Several optimizers as one, whose groups and state they share.

    DeepSpeed writes into the groups (it replaces their parameters by flat parts, and under ZeRO-1 and 2 even the list,
    to step one group at a time), so which groups an optimizer steps is asked anew at each step.
    """

    def __init__(self, owners: Sequence[OptimizerOwner], groups: Sequence[dict[str, Any]]) -> None:
        self._parts = {
            owner.name: owner.build([group for group in groups if group["optimizer"] == owner.name]) for owner in owners
        }
        super().__init__(groups, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each optimizer step its groups."""
        del closure
        for name, part in self._parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            if part.param_groups:
                part.step()


def build_optimizer(owners: Sequence[OptimizerOwner], groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        owners: All that may own a group, AdamW included.
        groups: Each with the name of its owner as `optimizer`.
    """
    groups = list(groups)
    used = [owner for owner in owners if any(group["optimizer"] == owner.name for group in groups)]
    return used[0].build(groups) if len(used) == 1 else JointOptimizer(used, groups)


def nvidia_apex_available() -> bool:
    """Whether the apex that can be imported is NVIDIA's; PyPI's package of that name is an unrelated web toolkit."""
    try:
        from apex.multi_tensor_apply import multi_tensor_applier
        from apex.optimizers import FusedAdam  # noqa: F401
    except Exception:  # an unrelated or half-built package can fail in any way
        return False
    return bool(multi_tensor_applier.available)


def choose_implementation(config: OptimizerConfig, device: torch.device) -> str:
    """Resolve `auto` and refuse what cannot run here.

    Raises:
        UserError: If the named implementation does not fit the device or is not installed.
    """
    name = config.implementation
    if name == "auto":
        return "apex" if device.type == "cuda" and nvidia_apex_available() else "torch"
    if name in ("apex", "deepspeed_fused") and device.type != "cuda":
        raise UserError(f"optimizer.implementation = {name}: needs a CUDA device; use auto, torch or deepspeed_cpu")
    if name == "apex" and not nvidia_apex_available():
        raise UserError(
            "optimizer.implementation = apex: NVIDIA apex with its CUDA extensions is not installed (PyPI's apex is "
            "an unrelated package); use auto, torch or deepspeed_fused"
        )
    return name


def _implementation(
    config: OptimizerConfig, device: torch.device
) -> tuple[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]]:
    """A description and a function that builds it over groups."""
    name = choose_implementation(config, device)
    common: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": 0.0}
    if name == "torch":
        return "torch AdamW (fused)", lambda groups: TorchAdamW(groups, fused=True, **common)
    if name == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        remove_stale_lock("cpu_adam")
        return "DeepSpeed CPUAdam", lambda groups: DeepSpeedCPUAdam(groups, adamw_mode=True, **common)
    if name == "deepspeed_fused":
        from deepspeed.ops.adam import FusedAdam

        remove_stale_lock("fused_adam")
        return "DeepSpeed FusedAdam", lambda groups: FusedAdam(groups, adam_w_mode=True, **common)
    from apex.optimizers import FusedAdam as ApexFusedAdam

    return "NVIDIA apex FusedAdam", lambda groups: ApexFusedAdam(groups, adam_w_mode=True, **common)


def remove_stale_lock(operator: str) -> None:
    """Remove the lock that a killed build of a DeepSpeed operator left, for which later ones would wait for ever."""
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory(operator, verbose=False)) / "lock"
    with suppress(FileNotFoundError):  # other ranks look too
        if time.time() - lock.stat().st_mtime > STALE_SECONDS:
            lock.unlink()
            logging.getLogger(__name__).warning("removed %s, which a build that died has left", lock)
