"""The AdamW implementations, and which of them runs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from megaqk.config.optimization import OptimizerConfig
from megaqk.errors import UserError

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]


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


def optimizer_factory(config: OptimizerConfig, device: torch.device) -> tuple[str, OptimizerFactory]:
    """The implementation to run and a function that builds it over parameter groups.

    Returns:
        A description for the log, and the factory. Groups carry their own lr and weight_decay.
    """
    name = choose_implementation(config, device)
    common: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": 0.0}
    if name == "torch":
        return "torch AdamW (fused)", lambda groups: torch.optim.AdamW(groups, fused=True, **common)
    if name == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return "DeepSpeed CPUAdam", lambda groups: DeepSpeedCPUAdam(list(groups), adamw_mode=True, **common)
    if name == "deepspeed_fused":
        from deepspeed.ops.adam import FusedAdam

        return "DeepSpeed FusedAdam", lambda groups: FusedAdam(list(groups), adam_w_mode=True, **common)
    from apex.optimizers import FusedAdam as ApexFusedAdam

    return "NVIDIA apex FusedAdam", lambda groups: ApexFusedAdam(list(groups), adam_w_mode=True, **common)
