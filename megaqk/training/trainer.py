"""A whole run: set-up, one step, and the hooks that look at it."""

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megaqk.config.loading import dump_config
from megaqk.config.root import Config
from megaqk.data.dataset import Dataset
from megaqk.optim.optimizers import OptimizerOwner
from megaqk.optim.rates import GroupRate
from megaqk.parallel.world import World
from megaqk.runtime import signals
from megaqk.runtime.files import written_whole
from megaqk.runtime.pulse import Pulse
from megaqk.training.batches import RankBatches
from megaqk.training.checks import open_inputs
from megaqk.training.engine import TrainingEngine
from megaqk.training.faults import Fault, diverged
from megaqk.training.prefetch import Prefetcher
from megaqk.training.progress import Progress
from megaqk.training.resuming import Loaded
from megaqk.training.run_checkpoints import RunCheckpoints
from megaqk.training.run_folder import RunFolder
from megaqk.training.speed import SpeedMeter
from megaqk.training.stopping import StopRequests

COLLECT_EVERY = 100
"""Steps between collections of garbage."""

Record = Mapping[str, Any]
"""Numbers by metric name, `step` among them: a line of `metrics.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step that has just been taken.

    Attributes:
        progress: Where the run is with it.
        rates: What each parameter group was updated with.
        last: Whether the run ends with it.
    """

    progress: Progress
    rates: Sequence[GroupRate]
    last: bool

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps (0: at the end only) is due."""
        return self.last or bool(every and self.progress.step % every == 0)


class Hook:
    """Looks at a run. Every rank has every hook and calls it at the same moments, so a hook may communicate."""

    def start(self, run: "Trainer") -> None:
        """Before the first step, the newest checkpoint loaded."""

    def step(self, run: "Trainer", step: Step) -> None:
        """After each optimizer step."""

    def record(self, run: "Trainer", record: Record) -> None:
        """When a hook has something to record, by `Trainer.record`."""

    def went_back(self, run: "Trainer") -> None:
        """After the run has gone back to a checkpoint; `load_state` has been called."""

    def saving(self, run: "Trainer") -> None:
        """Before a checkpoint is written: what it vouches for must be on disk."""

    def end(self, run: "Trainer") -> None:
        """After the last step, also where an earlier start has taken it; not where a run fails."""

    def close(self) -> None:
        """At the very end, whatever happened: files and displays."""

    def state(self) -> dict[str, Any]:
        """What the hook must know to go on after a resume, in types that JSON gives back; that of rank 0 is kept."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take `state` back, before `start`, on every rank."""


class Trainer:
    """Trains a configuration to its end, from wherever its newest checkpoint is.

    Args:
        config: The run.
        world: The processes, connected.
        folder: Where it writes, held by this job.
        hooks: What looks at it, in the order in which it does; see `hooks.default_hooks`.
        owners: Optimizers beside AdamW; see `plan_groups`.
        pulse: For whoever watches whether the run gets on.
        began: When the run was started, by `time.monotonic`; now.

    Attributes:
        progress: Where the run is.
        inputs: Its data, and what follows from it.
        engine: The model and its optimizer.
        speed: The clock of its training alone.
        signals: Measured values for multipliers and records, the same on every rank; hooks write them.
        checkpoint_wanted: Whether a checkpoint is written once all hooks have seen the step, or the next that is taken.
        fault: What the run goes back from once all hooks have seen the step; hooks write it, alike on every rank.
        log: The logger of this rank.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        folder: RunFolder,
        hooks: Sequence[Hook],
        owners: Sequence[OptimizerOwner] = (),
        pulse: Pulse | None = None,
        began: float | None = None,
    ) -> None:
        self.pulse = pulse or Pulse()
        self._stop = StopRequests(world, folder, began, config.training.time_limit)
        self.config = config
        self.world = world
        self.run_dir = folder.path
        self.folder = folder
        self.hooks = tuple(hooks)
        assert len({type(hook).__name__ for hook in hooks}) == len(hooks), "states are kept by the name of the class"
        self.log = logging.getLogger("megaqk")
        with self._stop.heeded():
            self.inputs = open_inputs(config, world)
        self.engine = TrainingEngine(config, world, self.inputs.vocabulary, owners)
        self._checkpoints = RunCheckpoints(self.run_dir, self.engine, self.inputs.identity)
        self.progress = Progress()
        if loaded := self._checkpoints.load():
            self._take(loaded)
            self.log.info("resumed after step %d", self.progress.step)
            for change in loaded.changes:
                self.log.info("changed since: %s", change)
        batches = self.batches(self.inputs.splits.train)
        count = world.micro_batches if world.reads_batches else 0
        self._batches = Prefetcher(lambda first: batches.read(first, count), world.device)
        self.checkpoint_wanted = False
        self.fault: Fault | None = None
        self._valid_loss: float | None = None
        self.signals: dict[str, float] = {}

    def _take(self, loaded: Loaded) -> None:
        """Go on from a checkpoint, whose weights and optimizer state are there."""
        for problem in loaded.damaged:
            self.log.warning("passed over %s", problem)
        self.progress = loaded.progress
        for hook in self.hooks:
            hook.load_state(loaded.state["hooks"].get(type(hook).__name__, {}))

    def batches(self, dataset: Dataset, *, alike: bool = False) -> RankBatches:
        """What this rank reads of a data set; where `alike`, what every data-parallel rank reads."""
        return RankBatches(
            dataset,
            micro_batch=self.config.training.micro_batch_size,
            data_rank=0 if alike else self.world.coordinate.data,
            data_size=1 if alike else self.world.data,
            separate_at=self.inputs.prepared.eod_id if self.config.data.separate_documents else None,
        )

    def train(self) -> None:
        """Train to the last step.

        Raises:
            StoppedError: If something asks the run to stop; it has saved what it had.
        """
        step, last = self.progress.step, self.config.training.steps
        if step >= last:
            self.log.info("%s is at step %d of %d already: nothing to train", self.run_dir, step, last)
            # It may have been killed between its last checkpoint and its end.
            if self.world.first_does(self.folder.is_finished):
                return
        else:
            self._introduce()
            for hook in self.hooks:
                hook.start(self)
        self._stop.before_the_first_step()
        # What the hooks did first is no time of training.
        self.speed = SpeedMeter(self.progress.tokens)
        # Ranks that collect at different moments wait for each other; a step leaves hardly any cycles.
        gc.collect()
        gc.disable()
        with signals.held():
            with self.pulse.steps(), self._checkpoints.settling(self.pulse):
                while self.progress.step < last:
                    self._take_step()
            gc.enable()
            self._checkpoints.wait()
            for hook in self.hooks:
                hook.end(self)

    def _take_step(self) -> None:
        """Take a step, show it to the hooks, save, and stop if something asks for it."""
        step = self.step()
        self.pulse.beat()
        stop = None if step.last else self._stop.after_step()
        if stop:
            self.checkpoint_wanted = True
        for hook in self.hooks:
            hook.step(self, step)
        # What made a step be skipped may lie in the model: only a step that is taken vouches for it.
        saves = self.checkpoint_wanted and not self.fault and (step.last or not self.engine.skipped)
        if saves:
            self.save()
        else:
            self._checkpoints.poll()
        # A hook may find it only while it saves.
        if goes_back := self.fault:
            self._go_back(goes_back)
        if stop and (saves or goes_back):
            with self.pulse.busy():
                self._checkpoints.wait()
            self._stop.end(stop, f"after step {self.progress.step}, which is saved")
        if step.due(COLLECT_EVERY):
            gc.collect(1)

    def _introduce(self) -> None:
        """Keep the configuration, and say what runs where."""
        if self.world.rank == 0:
            with written_whole(self.run_dir / "config.yaml") as beside:
                beside.write_text(dump_config(self.config))
        self.log.info("%s", self.engine.description())

    def step(self) -> Step:
        """Take one optimizer step."""
        training = self.config.training
        size, before = training.global_batch_size, self.progress
        before = replace(before, samples=before.next_batch(size))
        tokens = before.tokens + training.tokens_per_step
        after = replace(before, step=before.step + 1, samples=before.samples + size, tokens=tokens)
        last = after.step >= training.steps
        batches = self._batches.take(before.samples, None if last else after.next_batch(size))
        rates = self.engine.train_step(self.pulse.beats(batches), before, self.signals)
        self.progress, self._valid_loss = replace(after, skipped=before.skipped + self.engine.skipped), None
        return Step(progress=self.progress, rates=rates, last=last)

    def checked_loss(self) -> float:
        """The loss of the last step, finite unless the step was skipped; reading it waits for the device.

        Raises:
            DivergedError: If a step was taken whose loss or gradient norm is not finite: the model is lost.
        """
        loss, norm = float(self.engine.loss()), self.engine.gradient_norm()
        if self.engine.skipped or (math.isfinite(loss) and math.isfinite(norm)):
            return loss
        raise diverged(f"loss = {loss}, gradient norm = {norm} at step {self.progress.step}")

    def record(self, record: Record) -> None:
        """Show a record to all hooks."""
        self._valid_loss = record.get("valid_loss", self._valid_loss)
        for hook in self.hooks:
            hook.record(self, record)

    def save(self) -> None:
        """Begin to write a checkpoint, never of a model that is lost, once the one before it is written."""
        self.checkpoint_wanted = False
        for name, loss in (("loss", self.checked_loss()), ("validation loss", self._valid_loss)):
            if loss is not None and not math.isfinite(loss):
                raise diverged(f"{name} = {loss} at step {self.progress.step}")
        with self.speed.aside(), self.pulse.busy():
            for hook in self.hooks:
                hook.saving(self)
            states = {type(hook).__name__: hook.state() for hook in self.hooks}
            self._checkpoints.save(self.progress, states, self._valid_loss)

    def _go_back(self, fault: Fault) -> None:
        """Go on from the newest checkpoint before a fault, without its samples."""
        with self.pulse.busy():
            left_out = self.progress.left_out
            loaded = self._checkpoints.go_back(fault.before)
            if loaded is None:
                raise diverged(f"{fault.what}, and no checkpoint before it to go back to")
            self._take(loaded)
            self.progress = self.progress.without(*left_out, fault.samples)
            self.log.warning("%s", fault.told(self.progress.step))
            self.checkpoint_wanted, self.fault, self.signals = False, None, {}
            self.speed = SpeedMeter(self.progress.tokens)
            for hook in self.hooks:
                hook.went_back(self)
            gc.collect()

    def close(self) -> None:
        """Close the hooks' files and displays."""
        self._batches.close()
        for hook in self.hooks:
            hook.close()
