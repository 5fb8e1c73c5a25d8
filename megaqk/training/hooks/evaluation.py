"""Validation while training."""

import math

from megaqk.errors import UserError
from megaqk.training.trainer import Hook, Step, Trainer


def perplexity_of(loss: float) -> float:
    """Perplexity of a mean loss in nats a token, without overflow."""
    return math.exp(min(loss, 700.0))


def evaluation_micro_batches(
    samples: int, *, batches: int, global_batch_size: int, micro_batch_size: int, micro_batches: int, data: int
) -> int:
    """Micro-batches of each data-parallel rank in an evaluation that reads no sample twice.

    Args:
        samples: Validation samples there are.
        batches: Global batches asked for.
        global_batch_size: Samples of one.
        micro_batch_size: Samples of a forward pass.
        micro_batches: Forward passes of a replica in a global batch.
        data: Data-parallel replicas.

    Returns:
        Those of whole global batches where there is one, so that the set is the same on every topology.

    Raises:
        UserError: If there are not enough samples for one micro-batch on every replica.
    """
    available = samples // (micro_batch_size * data)
    if not available:
        raise UserError(
            f"data.split: leaves {samples} validation samples, fewer than training.micro_batch_size x data-parallel "
            f"size = {micro_batch_size * data}; give validation more, or set evaluation.batches=0"
        )
    return min(batches, samples // global_batch_size) * micro_batches or available


class Evaluation(Hook):
    """Every `evaluation.every` steps and at the end: the mean loss over the first validation batches."""

    def start(self, run: Trainer) -> None:
        """Count what there is to evaluate on."""
        training, world, valid = run.config.training, run.world, run.splits.valid
        self._batches = 0
        if valid is not None and run.config.evaluation.batches:
            self._batches = evaluation_micro_batches(
                valid.num_samples,
                batches=run.config.evaluation.batches,
                global_batch_size=training.global_batch_size,
                micro_batch_size=training.micro_batch_size,
                micro_batches=world.micro_batches,
                data=world.data,
            )

    def step(self, run: Trainer, step: Step) -> None:
        """Evaluate when it is due."""
        valid = run.splits.valid
        if not self._batches or valid is None or not step.due(run.config.evaluation.every):
            return
        with run.speed.aside():
            loss = float(run.engine.evaluate(run.batches(valid).read(0, self._batches), self._batches))
        run.record(
            {
                "step": step.progress.step,
                "tokens": step.progress.tokens,
                "valid_loss": loss,
                "valid_perplexity": perplexity_of(loss),
            }
        )
