"""From raw text to the tokens of a global batch.

`prepare` makes (or finds) a tokenizer and a corpus; `open_splits` opens its training, validation and test samples,
each a pure function of the global sample position and so independent of how the run is spread over ranks.
"""

from megaqk.data.given import PreparedData
from megaqk.data.prepare import prepare
from megaqk.data.splits import Splits, open_splits
from megaqk.data.stream import SampleStream
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.data.unigram import unigram_perplexity

__all__ = [
    "PreparedData",
    "SampleStream",
    "Splits",
    "Tokenizer",
    "load_tokenizer",
    "open_splits",
    "prepare",
    "unigram_perplexity",
]
