"""How much text the labels of an evaluation are."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megaqk.model.batch import Stream
from megaqk.parallel.cross_entropy import IGNORE_INDEX


class LabelCounter:
    """Counts the labels that are scored and the bytes of text that they stand for, on the way to the model.

    Args:
        token_bytes: As `Tokenizer.token_bytes`; None: nothing is known of them.
        eod_id: The id that ends documents: what follows it is the first token of one.

    Attributes:
        counts: Labels and bytes so far, int64 (2,).
    """

    def __init__(self, token_bytes: npt.NDArray[np.int64] | None, eod_id: int) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)
        self._token_bytes = None if token_bytes is None else torch.from_numpy(token_bytes)
        self._eod_id = eod_id

    def counted(self, batches: Iterable[tuple[Stream, Tensor]]) -> Iterator[tuple[Stream, Tensor]]:
        """The same batches."""
        for (tokens, positions), labels in batches:
            scored = labels != IGNORE_INDEX
            self.counts[0] += scored.sum()
            if self._token_bytes is not None:
                follows = (tokens != self._eod_id)[scored].long()
                self.counts[1] += self._token_bytes[follows, labels[scored]].sum()
            yield (tokens, positions), labels
