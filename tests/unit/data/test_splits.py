import json
import re
from pathlib import Path

import numpy as np
import pytest

from megaqk.config.data import DataConfig
from megaqk.data.existing import PreparedData
from megaqk.data.splits import document_bounds, open_splits
from megaqk.errors import UserError
from tests.corpora import write_corpus


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    # Document i holds only the token i, ten times.
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.full(10, i) for i in range(100)])
    return PreparedData(tokenizer=None, corpora=(tmp_path / "c",), vocab_size=100, eod_id=0)


def config(**keys: object) -> DataConfig:
    return DataConfig(corpus="unused", **keys)


def test_bounds_round_to_the_nearest_document() -> None:
    assert document_bounds(100, (0.9, 0.05, 0.05)) == [0, 90, 95, 100]
    assert document_bounds(7, (0.5, 0.25, 0.25)) == [0, 4, 5, 7]
    assert document_bounds(3, (1 / 3, 1 / 3, 1 / 3)) == [0, 1, 2, 3]
    assert document_bounds(0, (0.9, 0.05, 0.05)) == [0, 0, 0, 0]


def test_parts_hold_whole_documents_and_do_not_overlap(prepared: PreparedData) -> None:
    splits = open_splits(prepared, config(split=[0.8, 0.1, 0.1]), sequence_length=9, seed=0)
    for part, documents in ((splits.train, range(80)), (splits.valid, range(80, 90))):
        assert part is not None
        tokens = np.concatenate(list(part.token_blocks()))
        assert tokens.tolist() == [i for i in documents for _ in range(10)]
        assert set(np.unique(part.read(np.arange(part.num_samples)))) <= set(documents)
    assert splits.valid is not None
    assert splits.valid.read(np.arange(2)).tolist() == [[80] * 10, [80] + [81] * 9]


def test_the_seed_decides_the_training_order(prepared: PreparedData) -> None:
    def order(run_seed: int, **keys: object) -> list[list[int]]:
        return (
            open_splits(prepared, config(**keys), sequence_length=9, seed=run_seed).train.read(np.arange(80)).tolist()
        )

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1, seed=2) == order(2)


def test_a_part_without_a_share_is_absent(prepared: PreparedData) -> None:
    splits = open_splits(prepared, config(split=[1, 0, 0]), sequence_length=9, seed=0)
    assert splits.valid is None
    assert splits.train.num_samples == 111


def test_a_part_too_small_for_one_sample_is_refused(prepared: PreparedData) -> None:
    with pytest.raises(UserError, match=r"data.split = \[0.95, 0.05, 0.0\]: valid gets 5 of 100 documents with 50 tok"):
        open_splits(prepared, config(), sequence_length=50, seed=0)
    open_splits(prepared, config(), sequence_length=49, seed=0)


def few(tmp_path: Path, lengths: list[int]) -> PreparedData:
    write_corpus(tmp_path / "few", np.dtype("<u2"), [np.full(length, i) for i, length in enumerate(lengths)])
    return PreparedData(tokenizer=None, corpora=(tmp_path / "few",), vocab_size=100, eod_id=0)


def test_a_folder_of_six_files_trains_without_a_test_part(tmp_path: Path) -> None:
    splits = open_splits(few(tmp_path, [700] * 6), config(split=[0.9, 0.05, 0.05]), sequence_length=128, seed=0)
    assert splits.valid is not None
    assert np.unique(splits.valid.read(np.arange(splits.valid.num_samples))).tolist() == [5]


def test_the_test_part_is_held_back_and_opened_for_whoever_asks(prepared: PreparedData) -> None:
    for asked in (False, True):
        splits = open_splits(prepared, config(split=[0.8, 0.1, 0.1]), sequence_length=9, seed=0, test=asked)
        assert splits.train.num_tokens == 800
        assert (splits.test is not None) == asked
    assert splits.test is not None
    assert splits.test.read(np.arange(2)).tolist() == [[90] * 10, [90] + [91] * 9]
    assert open_splits(prepared, config(), sequence_length=9, seed=0).train.num_tokens == 950, "none is held back"


def test_a_test_part_too_small_for_a_sample_is_refused_where_it_is_asked_for(prepared: PreparedData) -> None:
    small = config(split=[0.9, 0.09, 0.01])
    assert open_splits(prepared, small, sequence_length=20, seed=0).test is None
    with pytest.raises(UserError, match=r"test gets 1 of 100 .* or leave it out \(evaluation.test=false\)"):
        open_splits(prepared, small, sequence_length=20, seed=0, test=True)


@pytest.mark.parametrize(
    ("lengths", "remedy"),
    [
        ([700] * 3, [0.8, 0.2, 0]),
        ([700, 700, 1, 1, 1, 1], [0.2, 0.8, 0]),
        ([300], [1, 0, 0]),
        ([100, 100], [1, 0, 0]),
        ([50, 50], None),
    ],
)
def test_what_is_too_small_comes_with_a_remedy_that_works(
    tmp_path: Path, lengths: list[int], remedy: list[float] | None
) -> None:
    prepared = few(tmp_path, lengths)
    with pytest.raises(UserError, match=r"(train|valid) gets .*--text-unit paragraph or line") as refusal:
        open_splits(prepared, config(), sequence_length=128, seed=0)
    offered = [json.loads(text) for text in re.findall(r"data.split=(\[.*?\])", str(refusal.value))]
    assert offered[:1] == ([] if remedy is None else [remedy])
    for split in offered:
        open_splits(prepared, config(split=split), sequence_length=128, seed=0)
