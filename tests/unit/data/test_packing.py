from pathlib import Path

import numpy as np
import pytest
import torch

from megaqk.config.model import ModelConfig
from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.packing import document_layout
from megaqk.data.verification import check_ends
from megaqk.errors import UserError
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.parallel.tensor_parallel import TensorParallel
from megaqk.parallel.vocabulary import vocab_parallel_cross_entropy
from tests.corpora import write_corpus

EOD = 9


def test_layout_by_hand() -> None:
    layout = document_layout(np.array([[5, 6, EOD, 1, EOD, EOD, 2], [1, 2, 3, 4, 5, 6, EOD]]), EOD)
    assert layout.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert layout.loss_mask.astype(int).tolist() == [[1, 1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]]


def test_a_packed_row_is_its_documents_run_apart() -> None:
    model = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, init_std=0.3)
    context = ModelContext(model=model, rows=10, tokens=10, max_positions=32, separate_documents=True)
    decoder = Decoder(context)
    initialize(decoder.global_parameters(), context, seed=0)

    def losses(inputs: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        positions = plain_positions(inputs[None]) if positions is None else positions
        logits = decoder.logits((inputs[None], positions))
        return vocab_parallel_cross_entropy(logits, labels[None], first=0, tp=TensorParallel())[0]

    rng = np.random.default_rng(0)
    documents = [torch.from_numpy(np.append(rng.integers(0, 9, length), EOD)) for length in (6, 1, 0, 13, 4)]
    row = torch.cat(documents)
    layout = document_layout(row[None, :-1].numpy(), EOD)
    packed = losses(row[:-1], row[1:], torch.from_numpy(layout.positions))[torch.from_numpy(layout.loss_mask[0])]
    apart = [losses(document[:-1], document[1:]) for document in documents if len(document) > 1]
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-5, atol=1e-5)


def test_documents_without_an_end_are_noticed(tmp_path: Path) -> None:
    # The fourth is empty, as Megatron leaves a document without text.
    documents = [np.array(document) for document in ([1, EOD], [EOD], [2, 3, EOD], [], [4, EOD])]
    write_corpus(tmp_path / "c", np.dtype("<u2"), documents)
    check_ends(IndexedCorpus(tmp_path / "c"), EOD)
    with pytest.raises(UserError, match=r"separate_documents = true: document 0 of .*c ends with token 9, must end"):
        check_ends(IndexedCorpus(tmp_path / "c"), 8)
    write_corpus(tmp_path / "d", np.dtype("<u2"), [*documents, np.array([5])])
    with pytest.raises(UserError, match=r"document 5 of .*d ends with token 5, must .* token 9: .*data.eod_token$"):
        check_ends(IndexedCorpus(tmp_path / "d"), EOD)


def test_sentences_of_a_document_need_no_end(tmp_path: Path) -> None:
    np.array([1, 2, EOD, 3, EOD], dtype="<u2").tofile(tmp_path / "c.bin")
    part = IndexPart(np.array([1, 2, 1, 1], dtype=np.int32), np.array([0, 2, 4]))
    write_index(tmp_path / "c.idx", np.dtype("<u2"), [part])
    check_ends(IndexedCorpus(tmp_path / "c"), EOD)


def test_a_large_corpus_is_sampled_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.array([1, EOD])] * 50_000 + [np.array([1])] * 100)
    opened = IndexedCorpus(tmp_path / "c")
    looked: list[int] = []
    monkeypatch.setattr(
        opened, "start_of", lambda number: looked.append(number) or IndexedCorpus.start_of(opened, number)
    )
    with pytest.raises(UserError, match=r"document 50\d\d\d of"):
        check_ends(opened, EOD)
    assert len(looked) <= 4000
