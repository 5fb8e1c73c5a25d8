from pathlib import Path

import numpy as np
import pytest

from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.verification import check_ends
from megaqk.errors import UserError
from tests.corpora import write_corpus

EOD = 9


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
