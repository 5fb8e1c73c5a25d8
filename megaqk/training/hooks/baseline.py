"""The simplest language model of the same text, as a floor that a trained model must pass."""

import math

import numpy as np
import numpy.typing as npt

from megaqk.data.dataset import Dataset
from megaqk.errors import UserError
from megaqk.training.hooks.evaluation import perplexity_of
from megaqk.training.trainer import Hook, Record, Trainer

# A second of counting. So many tell the frequencies of a vocabulary well; all of a large corpus would take hours.
_TOKENS_COUNTED = 10**8


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


def token_counts(dataset: Dataset, vocab_size: int) -> npt.NDArray[np.int64]:
    """Count each id in one epoch of a dataset, or in a sample spread evenly over a large one, shape (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for block in dataset.token_blocks(at_most=_TOKENS_COUNTED):
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= vocab_size:
            raise UserError(f"data: token {low if low < 0 else high} is outside the vocabulary, [0, {vocab_size})")
        counts += np.bincount(block, minlength=vocab_size)
    return counts


def unigram_perplexity(train: Dataset, valid: Dataset, vocab_size: int) -> float:
    """Perplexity on `valid` of the add-one-smoothed unigram model of `train`.

    It is exp of the mean of -log((count(token) + 1) / (training tokens + vocab_size)) over the validation tokens, of
    parts above 10^8 tokens over a sample.
    """
    seen = token_counts(train, vocab_size)
    asked = token_counts(valid, vocab_size)
    log_probability = np.log(seen + 1.0) - math.log(float(seen.sum()) + vocab_size)
    return math.exp(-float(asked @ log_probability) / float(asked.sum()))
