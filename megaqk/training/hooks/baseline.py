"""The simplest language model of the same text, as a floor that a trained model must pass."""

import math

from megaqk.data.unigram import unigram_perplexity
from megaqk.training.hooks.evaluation import perplexity_of
from megaqk.training.trainer import Hook, Record, Trainer


class UnigramBaseline(Hook):
    """Says at the end what the unigram model reaches on the validation text."""

    _loss = math.nan

    def record(self, run: Trainer, record: Record) -> None:
        """Keep the newest validation loss."""
        del run
        self._loss = record.get("valid_loss", self._loss)

    def end(self, run: Trainer) -> None:
        """Count the tokens on rank 0 and compare."""
        splits = run.inputs.splits
        if run.world.rank == 0 and splits.valid is not None and not math.isnan(self._loss):
            unigram = unigram_perplexity(splits.train, splits.valid, run.inputs.vocabulary.tokens)
            run.log.info(
                "validation perplexity %.2f; the unigram model of the same text has %.2f",
                perplexity_of(self._loss),
                unigram,
            )
