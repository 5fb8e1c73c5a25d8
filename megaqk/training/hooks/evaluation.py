"""Validation while training."""

import math

from megaqk.training.trainer import Hook, Step, Trainer


def perplexity_of(loss: float) -> float:
    """Perplexity of a mean loss in nats a token, without overflow."""
    return math.exp(min(loss, 700.0))


class Evaluation(Hook):
    """Every `evaluation.every` steps and at the end: the mean loss over the first validation batches."""

    def step(self, run: Trainer, step: Step) -> None:
        """Evaluate when it is due."""
        valid, count = run.inputs.splits.valid, run.inputs.evaluation_micro_batches
        if valid is None or not count or not step.due(run.config.evaluation.every):
            return
        run.checked_loss()
        with run.speed.aside():
            loss = float(run.engine.evaluate(run.pulse.beats(run.batches(valid).read(0, count)), count))
        run.record(
            {
                "step": step.progress.step,
                "tokens": step.progress.tokens,
                "valid_loss": loss,
                "valid_perplexity": perplexity_of(loss),
            }
        )
