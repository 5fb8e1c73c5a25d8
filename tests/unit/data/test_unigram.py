import math
from pathlib import Path

import numpy as np
import pytest

from megaqk.data import unigram_perplexity
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.stream import PackedStream
from megaqk.data.writer import write_corpus


def test_perplexity_by_hand(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.array([0, 0, 0, 1]), np.array([0, 2])])
    corpus = IndexedCorpus(tmp_path / "c")
    train = PackedStream(corpus, 0, 4, sequence_length=1, shuffle_key=None)
    valid = PackedStream(corpus, 4, 6, sequence_length=1, shuffle_key=None)
    # p(0) = (3 + 1) / (4 + 3), p(2) = (0 + 1) / (4 + 3)
    assert unigram_perplexity(train, valid, 3) == pytest.approx(math.sqrt(7 / 4 * 7 / 1))
