"""Probes of the model while it trains."""

from typing import Any

from megaqk.probing.logit_alert import LogitAlert
from megaqk.training.probe_measurement import measure
from megaqk.training.probe_writer import ProbeWriter
from megaqk.training.step_watch import StepWatch
from megaqk.training.trainer import Hook, Step, Trainer


class Probing(Hook):
    """Measures before the first step, every `probes.every` steps and at the end; between them it does nothing."""

    _watch: StepWatch | None = None
    _writer: ProbeWriter | None = None
    _alert: LogitAlert | None = None
    _alerted = False

    def start(self, run: Trainer) -> None:
        """Go on where the checkpoint left the files; measure a model that has not been trained."""
        if not run.config.probes.every:
            return
        self._watch = StepWatch(run.engine)
        if run.config.probes.max_logit_alert is not None:
            self._alert = LogitAlert(run.config.probes.max_logit_alert, above=self._alerted)
        if run.world.rank == 0:
            self._writer = ProbeWriter(run.run_dir, resume_step=run.progress.step)
        if run.progress.step == 0:
            self._measure(run, None)
        self._arm(run)

    def went_back(self, run: Trainer) -> None:
        """Drop what was measured since."""
        self.close()
        self.start(run)

    def step(self, run: Trainer, step: Step) -> None:
        """Measure when it is due, and watch the next step if it is due then."""
        if self._watch is None:
            return
        every, now = run.config.probes.every, step.progress.step
        if step.last or now % every == 0:
            self._watch.disarm()
            self._measure(run, None if run.engine.skipped else self._watch)
            if self._writer is not None and (step.last or _draws_after(now // every)):
                with run.speed.aside():
                    self._writer.draw()
        if not step.last:
            self._arm(run)

    def _arm(self, run: Trainer) -> None:
        following = run.progress.step + 1
        due = following % run.config.probes.every == 0 or following == run.config.training.steps
        if self._watch is not None and due:
            self._watch.arm()

    def _measure(self, run: Trainer, watch: StepWatch | None) -> None:
        count, micro_batch = run.config.probes.micro_batches, run.config.training.micro_batch_size
        stream = run.batches(run.inputs.splits.probed("probes.micro_batches", count, micro_batch), alike=True)
        batches = list(stream.read(0, count))
        measured = measure(run.engine, batches, watch, run.pulse)
        if measured is not None and self._writer is not None:
            self._writer.write({"step": run.progress.step, "tokens": run.progress.tokens, **measured})
            if self._alert is not None and (news := self._alert.look(measured["logit_max"])):
                run.log.warning(
                    "step %d: an attention logit of %.4g in layer %d, head %d is above probes.max_logit_alert = %g",
                    run.progress.step,
                    *news,
                    run.config.probes.max_logit_alert,
                )

    def saving(self, run: Trainer) -> None:
        """Put everything on disk: a run resumed from the checkpoint has all records before it."""
        del run
        if self._writer is not None:
            self._writer.flush()

    def state(self) -> dict[str, Any]:
        """Whether the alert has been given."""
        return {"alerted": self._alert is not None and self._alert.above}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._alerted = state.get("alerted", False)

    def close(self) -> None:
        """Close the files, and look at no step."""
        if self._watch is not None:
            self._watch.disarm()
        if self._writer is not None:
            self._writer.close()


def _draws_after(probes: int) -> bool:
    """Whether there are pictures after so many probes: ever more rarely, since each has all that came before."""
    return probes >= 4 and probes.bit_count() == 1
