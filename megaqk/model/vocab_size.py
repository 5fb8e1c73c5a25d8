"""The size of the vocabulary: what the tokenizer has, and what the embedding holds."""

from dataclasses import dataclass
from math import lcm

from megaqk.config.root import Config
from megaqk.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Size of the vocabulary.

    Attributes:
        tokens: Real tokens.
        rows: Rows of the embedding table, padding included.
    """

    tokens: int
    rows: int


def padded_vocab_size(size: int, multiple: int, tensor: int) -> int:
    """The smallest multiple of lcm(multiple, tensor) that is not below `size`: every rank gets as many rows."""
    step = lcm(multiple, tensor)
    return -(-size // step) * step


def vocabulary_of(config: Config, tokens: int) -> Vocabulary:
    """The vocabulary of a run: `model.vocab_size` rows where it is given, else the tokenizer's ids, padded.

    Args:
        config: The run.
        tokens: Ids of the tokenizer.

    Raises:
        UserError: If `model.vocab_size` is smaller than the tokenizer.
    """
    rows = config.model.vocab_size
    if rows is None:
        rows = padded_vocab_size(tokens, config.model.vocab_multiple_of, config.parallel.tensor)
    elif rows < tokens:
        raise UserError(f"model.vocab_size = {rows}: must be at least the tokenizer's {tokens}")
    return Vocabulary(tokens=tokens, rows=rows)
