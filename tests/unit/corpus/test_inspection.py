import re
from pathlib import Path

import numpy as np
import pytest

from megaqk.corpus.inspection import describe_corpus
from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import IndexedCorpus


def corpus(prefix: Path, lengths: list[int], documents: list[int] | None = None) -> IndexedCorpus:
    """Make a corpus of one-byte tokens, which cost nothing where a file may have holes."""
    with prefix.with_suffix(".bin").open("wb") as stream:
        stream.truncate(sum(lengths))
    bounds = range(len(lengths) + 1) if documents is None else np.array(documents)
    write_index(prefix.with_suffix(".idx"), np.dtype("u1"), [IndexPart(np.array(lengths, dtype=np.int32), bounds)])
    return IndexedCorpus(prefix)


def numbers(opened: IndexedCorpus) -> list[float]:
    return [
        float(found.replace(",", ""))
        for found in re.findall(r"(?<!\S)[\d,]+(?:\.\d)?(?=[,;]| empty)", describe_corpus(opened)[2])
    ]


def by_sorting(lengths: list[int]) -> list[float]:
    low, median, high, longest = np.percentile(lengths, [0, 50, 95, 100], method="nearest").tolist()
    return [round(float(np.mean(lengths)), 1), low, median, high, longest, lengths.count(0)]


@pytest.mark.parametrize("largest", [0, 1, 300, 65_535, 65_536, 3_000_000])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
def test_lengths_are_ranked_as_by_sorting(tmp_path: Path, largest: int, count: int) -> None:
    random = np.random.default_rng(largest + count)
    lengths = random.integers(0, largest + 1, count).tolist()
    assert numbers(corpus(tmp_path / "c", lengths)) == by_sorting(lengths)


def test_documents_are_runs_of_sequences(tmp_path: Path) -> None:
    opened = corpus(tmp_path / "c", [1, 2, 3, 4, 0, 90_000], [0, 2, 2, 3, 4, 5, 6])
    assert numbers(opened) == by_sorting([3, 0, 3, 4, 0, 90_000])
