"""How much text the labels of an evaluation stand for."""

import numpy as np
import torch

from megaqk.model.batch import plain_positions
from megaqk.parallel.cross_entropy import IGNORE_INDEX
from megaqk.training.label_counter import LabelCounter

END = 0


def test_labels_and_their_bytes() -> None:
    # Token 1 has 5 bytes, one of them a space that the beginning of a document drops; token 2 has 3 anywhere.
    counter = LabelCounter(np.array([[0, 4, 3], [0, 5, 3]]), END)
    tokens = torch.tensor([[1, 2, END, 1], [2, 1, 1, 1]])
    labels = torch.tensor([[2, END, 1, 1], [1, 1, 1, IGNORE_INDEX]])
    [(_, seen)] = counter.counted([((tokens, plain_positions(tokens)), labels)])
    assert torch.equal(seen, labels)
    assert counter.counts.tolist() == [7, 3 + 0 + 4 + 5 + 3 * 5]


def test_without_a_tokenizer_labels_alone_are_counted() -> None:
    counter, tokens = LabelCounter(None, END), torch.zeros(2, 3, dtype=torch.int64)
    list(counter.counted([((tokens, plain_positions(tokens)), tokens)]))
    assert counter.counts.tolist() == [6, 0]
