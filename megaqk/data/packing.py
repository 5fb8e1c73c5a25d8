"""Where the documents lie in packed samples, for attention and positions that start anew with each of them.

The boundaries are read off the tokens: a document ends with its end-of-document token, as in Megatron. Nothing has to
be stored or sent along, and any rank that has (or can read) a batch has its layout.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megaqk.data.indexed import IndexedCorpus
from megaqk.errors import UserError

_DOCUMENTS_CHECKED = 2000


@dataclass(frozen=True)
class DocumentLayout:
    """The documents of a batch of B packed inputs of S tokens.

    Running each document apart gives the same hidden states and losses as running the batch with these positions,
    attention within documents only, and the loss only where `loss_mask` is set.

    Attributes:
        positions: Place of each token in its document, shape (B, S), int64; a document begins wherever it is 0. The
            first document of a row counts from the row's start, wherever it began.
        loss_mask: False where the input ends a document, whose next token nothing announces, shape (B, S), bool.
    """

    positions: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]


def document_layout(inputs: npt.NDArray[np.int64], eod_id: int) -> DocumentLayout:
    """Find the documents in inputs of shape (B, S), which are samples without their last token; S is at least 1."""
    ends = inputs == eod_id
    starts = np.zeros_like(ends)
    starts[:, 1:] = ends[:, :-1]
    index = np.arange(inputs.shape[1], dtype=np.int64)
    begun = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return DocumentLayout(positions=index - begun, loss_mask=~ends)


def check_ends(corpus: IndexedCorpus, eod_id: int) -> None:
    """Look at the last tokens of documents spread over a corpus, of all of a small one; empty documents have none.

    Raises:
        UserError: One is not the end of document, so that `document_layout` would not see where documents end.
    """
    last = corpus.num_documents - 1
    for number in np.unique(np.linspace(0, last, min(_DOCUMENTS_CHECKED, last + 1)).astype(np.int64)).tolist():
        start, end = corpus.start_of(number), corpus.start_of(number + 1)
        if end > start and int(corpus.tokens[end - 1]) != eod_id:
            raise UserError(
                f"data.separate_documents = true: document {number} of {corpus.prefix} ends with token "
                f"{int(corpus.tokens[end - 1])}, must end with the end-of-document token {eod_id}: make the "
                "corpus with it (Megatron: --append-eod), or name the token that it has in data.eod_token"
            )
