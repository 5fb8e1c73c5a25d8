import math
from pathlib import Path

import numpy as np
import pytest

from megaqk.data.blend import BlendedDataset, Phase
from megaqk.data.dataset import Dataset, PackedDataset
from megaqk.data.indexed import IndexedCorpus
from megaqk.errors import UserError
from megaqk.training.hooks import baseline
from megaqk.training.hooks.baseline import unigram_perplexity
from tests.corpora import write_corpus


def test_perplexity_by_hand(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.array([0, 0, 0, 1]), np.array([0, 2])])
    corpus = IndexedCorpus(tmp_path / "c")
    train = PackedDataset(corpus, 0, 4, sequence_length=1, shuffle_key=None)
    valid = PackedDataset(corpus, 4, 6, sequence_length=1, shuffle_key=None)
    # p(0) = (3 + 1) / (4 + 3), p(2) = (0 + 1) / (4 + 3)
    assert unigram_perplexity(train, valid, 3) == pytest.approx(math.sqrt(7 / 4 * 7 / 1))


def test_a_large_part_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "_TOKENS_COUNTED", 10_000)
    # A tenth of the tokens is 0, then 1, and so on: whatever is not spread evenly finds another distribution.
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.repeat(np.arange(10), 40_000)])
    corpus = IndexedCorpus(tmp_path / "c")
    one = PackedDataset(corpus, 0, 400_000, sequence_length=4, shuffle_key=None)
    two = BlendedDataset([one, one], [Phase(0, (1, 1))])
    streams: list[Dataset] = [one, two]
    for stream in streams:
        read = sum(len(block) for block in stream.token_blocks(at_most=10_000))
        assert 9_000 <= read <= 10_000
        assert unigram_perplexity(stream, stream, 10) == pytest.approx(10, rel=1e-6)


@pytest.mark.parametrize("wrong", [9, -1])
def test_a_token_beyond_the_vocabulary_is_one_line(tmp_path: Path, wrong: int) -> None:
    write_corpus(tmp_path / "c", np.dtype("<i4"), [np.array([0, 1, wrong, 2])])
    stream = PackedDataset(IndexedCorpus(tmp_path / "c"), 0, 4, sequence_length=1, shuffle_key=None)
    with pytest.raises(UserError, match=rf"data: token {wrong} is outside the vocabulary, \[0, 3\)"):
        unigram_perplexity(stream, stream, 3)
