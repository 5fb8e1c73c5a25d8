"""Checkpoints while training."""

from megaqk.training.trainer import Hook, Step, Trainer


class Saving(Hook):
    """Every `checkpoint.every` steps and at the end."""

    def step(self, run: Trainer, step: Step) -> None:
        """Ask for a checkpoint when it is due."""
        if step.due(run.config.checkpoint.every):
            run.checkpoint_wanted = True
