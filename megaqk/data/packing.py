"""Where the documents lie in packed samples, for attention and positions that start anew with each of them.

The boundaries are read off the tokens: a document ends with its end-of-document token, as in Megatron. Nothing has to
be stored or sent along, and any rank that has (or can read) a batch has its layout.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
