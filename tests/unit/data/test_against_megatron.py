"""megatron-core reads what we write and we read what it writes."""

from pathlib import Path

import numpy as np
import pytest

from megaqk.corpus.assembling import merge, split
from megaqk.data.indexed import IndexedCorpus, token_dtype
from tests.corpora import write_corpus

indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
torch = pytest.importorskip("torch")

VOCABULARIES = [30_000, 200_000]


def documents(vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(vocab_size)
    return [rng.integers(0, vocab_size, length) for length in (5, 1, 0, 300, 17, 0, 2)]


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("mapped", [True, False])
def test_megatron_reads_ours(tmp_path: Path, vocab_size: int, mapped: bool) -> None:
    prefix, dtype = tmp_path / "c", token_dtype(vocab_size)
    assert dtype == np.dtype(indexed_dataset.DType.optimal_dtype(vocab_size))
    write_corpus(prefix, dtype, documents(vocab_size))
    theirs = indexed_dataset.IndexedDataset(str(prefix), mmap=mapped)
    assert theirs.index.dtype == dtype
    assert theirs.document_indices.tolist() == list(range(8))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [one.tolist() for one in documents(vocab_size)]


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_we_read_megatrons(tmp_path: Path, vocab_size: int) -> None:
    prefix = tmp_path / "c"
    builder = indexed_dataset.IndexedDatasetBuilder(
        str(prefix) + ".bin", dtype=indexed_dataset.DType.optimal_dtype(vocab_size)
    )
    for number, document in enumerate(documents(vocab_size)):
        if number % 2:
            builder.add_document(torch.from_numpy(document), [len(document)])
        else:
            # A document of two sentences.
            lengths = [len(document) // 2, len(document) - len(document) // 2]
            builder.add_document(torch.from_numpy(document), lengths)
    builder.finalize(str(prefix) + ".idx")
    ours = IndexedCorpus(prefix)
    assert [ours.document(i).tolist() for i in range(ours.num_documents)] == [
        one.tolist() for one in documents(vocab_size)
    ]

    # Cut apart and joined again, it is what Megatron wrote, sentences included.
    split([tmp_path / "x", tmp_path / "y"], ours, [0.5, 0.5])
    merge(tmp_path / "z", [IndexedCorpus(tmp_path / "x"), IndexedCorpus(tmp_path / "y")])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"z{suffix}").read_bytes() == (tmp_path / f"c{suffix}").read_bytes()
