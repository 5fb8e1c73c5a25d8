"""DeepSpeed's engines with exact gradients under tensor parallelism.

Added to both: partial gradients of replicated parameters are summed over the tensor-parallel group before the
data-parallel reduction, and without ZeRO the norm and the clipping are ours (DeepSpeed's own count replicated
parameters of later pipeline stages not at all and tied ones twice, and do not report the norm).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import Tensor, nn

from megaqk.optim.optimizers import JointOptimizer, TorchAdamW
from megaqk.parallel.gradients import (
    clip_gradients,
    global_norm,
    partial_gradient_parameters,
    reduce_partial_gradients,
)
from megaqk.parallel.world import World

# It collects all garbage dozens of times while an optimizer is made, for a log that nobody reads.
bf16_optimizer.see_memory_usage = lambda *_, **__: None
# DeepSpeed warns of what it does not know.
ZERO_SUPPORTED_OPTIMIZERS.extend((TorchAdamW, JointOptimizer))


class _ExactGradients(DeepSpeedEngine):  # type: ignore[misc]
    """What both engines add; mixed in before DeepSpeed's class."""

    world: World
    partial_parameters: Sequence[nn.Parameter] = ()

    def attach(self, world: World) -> None:
        """Name the processes and their groups, once, after construction."""
        self.world = world
        partial = partial_gradient_parameters(self.module.parameters())
        # BF16_Optimizer reduces at the end of a step whatever `overlap_comm` says.
        at_the_end = isinstance(self.optimizer, BF16_Optimizer) or not self.zero_overlap_comm()
        if self.zero_optimization_stage() < 2 and at_the_end:
            self.partial_parameters = partial
            return
        # ZeRO-2 and 3, and overlapped communication, reduce a gradient as soon as it is computed: it must be whole.
        for parameter in partial:
            parameter.register_hook(_sum_over(world.tp.group))  # type: ignore[no-untyped-call]

    def _accumulated_gradient(self, parameter: nn.Parameter) -> Tensor | None:
        # Where the gradient lies when the last micro-batch is done: BF16_Optimizer accumulates in an fp32 tensor of its
        # own, ZeRO-1 may keep it beside the parameter, and without ZeRO it is where torch put it.
        if isinstance(self.optimizer, BF16_Optimizer):
            return parameter._hp_grad  # type: ignore[attr-defined, no-any-return]
        if isinstance(self.optimizer, DeepSpeedZeroOptimizer):
            return self.optimizer.get_gradient_for_reduction(parameter)  # type: ignore[no-any-return]
        return parameter.grad

    def _sum_partial_gradients(self) -> None:
        gradients = [self._accumulated_gradient(p) for p in self.partial_parameters]
        reduce_partial_gradients([g for g in gradients if g is not None], self.world.tp)

    def allreduce_gradients(self, *args: Any, **kwargs: Any) -> None:
        """DeepSpeed calls this after each backward pass; the reduction itself happens at the last micro-batch."""
        if self.is_gradient_accumulation_boundary():
            # Before the data-parallel mean, so that it is taken of whole gradients, and once a step: sums commute.
            self._sum_partial_gradients()
        super().allreduce_gradients(*args, **kwargs)

    def _take_model_step(self, lr_kwargs: Any = None) -> None:
        if not self.zero_optimization():
            # DeepSpeed clips in here too, with a norm that is wrong under pipeline parallelism. `clip_fp32_gradients`
            # is where it would; `_global_grad_norm` is what it reports.
            parameters = list(self.module.parameters())
            group = self.world.model_group if self.world.tensor * self.world.pipeline > 1 else None
            self._global_grad_norm = global_norm(parameters, tp=self.world.tp, group=group)
            # Looked at once a step, as DeepSpeed's own optimizers do: a step with a lost gradient changes nothing.
            self.optimizer.overflow = not math.isfinite(self._global_grad_norm)
            if self.optimizer.overflow:
                self._skip_step()
                return
            if self.gradient_clipping() > 0:
                clip_gradients(parameters, self._global_grad_norm, self.gradient_clipping())
        super()._take_model_step(lr_kwargs)
        if isinstance(self.optimizer, DeepSpeedZeroOptimizer) and self.optimizer.overflow:
            # Offloaded in bf16 it would keep the lost sums, add to them, and skip every step from then on.
            self.optimizer.averaged_gradients = dict.fromkeys(self.optimizer.averaged_gradients)

    def _skip_step(self) -> None:
        # What is left of DeepSpeed's step: some optimizers count a step without gradients too.
        self.module.zero_grad(set_to_none=True)
        self.losses = None
        self.skipped_steps += 1
        self.global_steps += 1
        self.global_samples += self.train_batch_size()

    def clip_fp32_gradients(self) -> None:
        """Nothing: the gradients are clipped already."""


def _sum_over(group: dist.ProcessGroup | None) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total

    return hook


class PlainEngine(_ExactGradients):
    """The engine without pipeline stages: ZeRO 0 to 3."""


class StagedEngine(_ExactGradients, PipelineEngine):  # type: ignore[misc]
    """The pipeline engine: ZeRO 0 and 1."""

    def _bf16_reduce_grads(self) -> None:
        # With BF16_Optimizer the pipeline engine reduces here and never calls `allreduce_gradients`.
        self._sum_partial_gradients()
        super()._bf16_reduce_grads()
