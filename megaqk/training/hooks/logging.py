"""The record of a training step."""

import torch
import torch.distributed as dist

from megaqk.model.flops import flops_per_token
from megaqk.runtime.device import peak_memory_bytes
from megaqk.training.peak import job_peak
from megaqk.training.trainer import Hook, Step, Trainer


class StepRecords(Hook):
    """Every `logging.every` steps: loss, gradient norm, rates by group, signals, speed, utilisation and memory.

    Reading the loss waits for the device, which is why it is not done at every step.
    """

    def start(self, run: Trainer) -> None:
        """Learn what the device could do at most."""
        training = run.config.training
        self._flops_per_token = flops_per_token(run.config.model, run.engine.inventory, training.sequence_length)
        self._peak = job_peak(run.world.device, training.precision)
        run.log.info("peak of the job %.0f GFLOP/s", self._peak / 1e9)

    def step(self, run: Trainer, step: Step) -> None:
        """Record a step that is due."""
        if not step.due(run.config.logging.every):
            return
        loss, norm = run.checked_loss(), run.engine.gradient_norm()
        memory = torch.tensor(peak_memory_bytes(run.world.device), dtype=torch.int64, device=run.world.device)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        tokens_per_second = run.speed.read(step.progress.tokens)
        flops = tokens_per_second * self._flops_per_token
        run.record(
            {
                "step": step.progress.step,
                "tokens": step.progress.tokens,
                "loss": loss,
                "grad_norm": norm,
                "skipped_steps": step.progress.skipped,
                **{f"lr/{rate.name}": rate.lr for rate in step.rates},
                **{f"multiplier/{rate.name}": rate.multiplier for rate in step.rates},
                **run.signals,
                "tokens_per_second": tokens_per_second,
                "model_flops_per_second": flops,
                "mfu": flops / self._peak,
                "peak_memory_bytes": int(memory),
            }
        )
