from pathlib import Path

import numpy as np
import pytest

from megaqk.data.dataset import PackedDataset
from megaqk.data.indexed import IndexedCorpus
from megaqk.errors import UserError
from tests.corpora import write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    rng = np.random.default_rng(0)
    write_corpus(tmp_path / "c", np.dtype("<u2"), [rng.integers(0, 60000, n) for n in rng.integers(0, 30, 40)])
    return IndexedCorpus(tmp_path / "c")


def by_hand(tokens: list[int], length: int) -> list[list[int]]:
    """Cut samples of length + 1 tokens that share their last token with the next one's first."""
    samples = []
    while len(tokens) >= length + 1:
        samples.append(tokens[: length + 1])
        tokens = tokens[length:]
    return samples


@pytest.mark.parametrize("length", [1, 2, 7, 16, 100])
def test_file_order_is_packing_by_hand(corpus: IndexedCorpus, length: int) -> None:
    begin, end = 13, corpus.num_tokens - 5
    stream = PackedDataset(corpus, begin, end, sequence_length=length, shuffle_key=None)
    expected = by_hand(corpus.tokens[begin:end].tolist(), length)
    assert stream.num_samples == len(expected)
    assert stream.num_tokens == end - begin
    got = stream.read(np.arange(2 * len(expected)))
    assert got.dtype == np.int64
    assert got.tolist() == expected * 2
    assert np.concatenate(list(stream.token_blocks())).tolist() == corpus.tokens[begin:end].tolist()


def test_each_epoch_is_another_order_of_all_samples(corpus: IndexedCorpus) -> None:
    stream = PackedDataset(corpus, 0, corpus.num_tokens, sequence_length=7, shuffle_key=(1,))
    expected = sorted(by_hand(corpus.tokens.tolist(), 7))
    n = stream.num_samples
    epochs = [stream.read(np.arange(n) + n * epoch).tolist() for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == expected
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_read_depends_on_each_position_alone(corpus: IndexedCorpus) -> None:
    stream = PackedDataset(corpus, 0, corpus.num_tokens, sequence_length=7, shuffle_key=(1,))
    positions = np.random.default_rng(1).integers(0, 5 * stream.num_samples, 50)
    together = stream.read(positions)
    again = PackedDataset(corpus, 0, corpus.num_tokens, sequence_length=7, shuffle_key=(1,))
    assert together.tolist() == [again.read(np.array([p]))[0].tolist() for p in positions]
    assert stream.read(np.array([], dtype=np.int64)).shape == (0, 8)


def test_tokens_outside_the_vocabulary_are_refused(corpus: IndexedCorpus) -> None:
    largest = int(corpus.tokens.max())
    stream = PackedDataset(corpus, 0, corpus.num_tokens, sequence_length=7, shuffle_key=None, vocab_size=largest)
    with pytest.raises(UserError, match=rf"c.bin: holds a token outside the vocabulary, \[0, {largest}\)"):
        stream.read(np.arange(stream.num_samples))
