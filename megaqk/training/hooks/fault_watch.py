"""Faults in the numbers: skipped steps in a row, and spikes of loss and gradient norm."""

import math
from typing import Any

from megaqk.training.faults import Fault, diverged
from megaqk.training.spikes import SpikeWatch
from megaqk.training.trainer import Hook, Step, Trainer

FAILURES = 2
"""So often a run may fail right after the checkpoint that it has gone back to; then it takes an older one."""


class FaultWatch(Hook):
    """Says what is wrong and does what `faults` says, on all ranks alike: what they decide by has the same bits.

    The verdict on a step is read after the next one, or before a checkpoint.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._spikes: SpikeWatch | None = None
        self._judged: tuple[int, tuple[int, int]] | None = None  # the step and its samples that wait for a verdict
        self._row: tuple[int, int] | None = None  # the first step, and its first sample, of those skipped in a row
        # What no checkpoint brings back.
        self._attempts, self._failures, self._fault_at, self._back_at = 0, 0, 0, -1

    def start(self, run: Trainer) -> None:
        """Go on with what the checkpoint has."""
        faults = run.config.faults
        self._row = self._judged = self._spikes = None
        if faults.spike_deviations:
            self._spikes = SpikeWatch(
                ("loss", "gradient norm"),
                faults.spike_window,
                faults.spike_deviations,
                run.world.device,
                self._state,
            )

    def went_back(self, run: Trainer) -> None:
        """Likewise."""
        self._back_at = run.progress.step
        self.start(run)

    def step(self, run: Trainer, step: Step) -> None:
        """Judge the step before, and look at this one."""
        self._judge(run)
        if run.fault is not None:
            return
        end = step.progress.samples
        samples = end - run.config.training.global_batch_size, end
        if run.engine.skipped:
            self._skipped(run, step, samples)
        else:
            self._row = None
            if self._spikes is not None and self._spikes.enter(run.engine.loss_and_norm()):
                self._judged = step.progress.step, samples
        if run.checkpoint_wanted:
            self._judge(run)

    def saving(self, run: Trainer) -> None:
        """Judge what a checkpoint is to vouch for; one past the fault is a new beginning."""
        self._judge(run)
        if run.progress.step > self._fault_at:
            self._attempts = 0

    def _skipped(self, run: Trainer, step: Step, samples: tuple[int, int]) -> None:
        number = step.progress.step
        lost = not math.isfinite(run.engine.loss_and_norm()[0])
        run.log.warning("step %d skipped: its %s is not finite", number, "loss" if lost else "gradient")
        nothing_taken = step.progress.skipped == number
        if nothing_taken and not lost and run.engine.scale_can_fall and not step.last:
            return  # fp16 looks for its first scale
        self._row = self._row or (number, samples[0])
        first, begin = self._row
        if number - first + 1 >= run.config.faults.skipped_steps or (step.last and (lost or nothing_taken)):
            which = f"steps {first} to {number}" if number > first else f"step {number}"
            self._act(run, run.config.faults.action, first, (begin, samples[1]), f"no finite gradient in {which}")

    def _judge(self, run: Trainer) -> None:
        if self._spikes is None or self._judged is None:
            return
        (number, samples), self._judged = self._judged, None
        words = "; ".join(
            f"{name} {value:.4g} is a spike, mean {mean:.4g}, deviation {deviation:.4g}"
            for name, value, mean, deviation in self._spikes.spikes()
        )
        if words:
            run.log.warning("step %d: %s", number, words)
            self._act(run, run.config.faults.spike_action, number, samples, f"{words} in step {number}")

    def _act(self, run: Trainer, action: str, first: int, samples: tuple[int, int], what: str) -> None:
        if action == "log":
            return
        if action == "stop":
            raise diverged(what)
        if self._attempts == run.config.faults.attempts:
            raise diverged(f"{what}, having gone back {self._attempts} times without a new checkpoint")
        self._attempts, self._fault_at = self._attempts + 1, run.progress.step
        self._failures = self._failures + 1 if first == self._back_at + 1 else 0
        before = first
        if self._failures == FAILURES:
            before, self._failures = self._back_at, 0
        run.fault = Fault(what=what, at=run.progress.step, before=before, samples=samples)

    def state(self) -> dict[str, Any]:
        """Mean and deviation."""
        return self._spikes.state() if self._spikes is not None else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Keep them for the start."""
        self._state = state
