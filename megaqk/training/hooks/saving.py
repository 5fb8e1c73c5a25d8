"""Checkpoints while training."""

from megaqk.training.trainer import Hook, Step, Trainer


class Saving(Hook):
    """Every `checkpoint.every` steps and at the end."""

    def step(self, run: Trainer, step: Step) -> None:
        """Save when it is due, never a model that is lost."""
        if not step.due(run.config.checkpoint.every):
            return
        with run.speed.aside():
            run.finite_loss()
            run.save()
