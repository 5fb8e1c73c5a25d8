"""The simplest language model, as a floor that any trained model must pass."""

import math

import numpy as np
import numpy.typing as npt

from megaqk.data.stream import SampleStream


def token_counts(stream: SampleStream, vocab_size: int) -> npt.NDArray[np.int64]:
    """Count each id in one epoch of a stream, shape (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for block in stream.token_blocks():
        counts += np.bincount(block, minlength=vocab_size)
    return counts


def unigram_perplexity(train: SampleStream, valid: SampleStream, vocab_size: int) -> float:
    """Perplexity on `valid` of the add-one-smoothed unigram model of `train`.

    It is exp of the mean of -log((count(token) + 1) / (training tokens + vocab_size)) over the validation tokens.
    """
    seen = token_counts(train, vocab_size)
    asked = token_counts(valid, vocab_size)
    log_probability = np.log(seen + 1.0) - math.log(float(seen.sum()) + vocab_size)
    return math.exp(-float(asked @ log_probability) / float(asked.sum()))
