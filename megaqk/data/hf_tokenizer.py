"""A Hugging Face `tokenizer.json`, through the `tokenizers` library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from megaqk.data.tokenizer import absent_end, no_end
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

# What the common model families call the end of a document.
_ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<eod>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<EOS_TOKEN>", "[SEP]"),
)


class HuggingFaceTokenizer:
    """A `tokenizer.json` file; see `tokenizer.Tokenizer`."""

    def __init__(self, path: Path, eod_token: str | None = None) -> None:
        with os_errors_named(path):
            text = path.read_text(encoding="utf-8", errors="replace")
        self.path = path
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{path}: not a tokenizer.json") from error
        # Documents are taken whole, and a special token spelled out in a text is text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if not ids:
            raise UserError(f"{path}: its vocabulary is empty")
        # Ids may have gaps: what the embedding must hold is the largest, not the count.
        self.vocab_size = max(ids.values()) + 1
        if eod_token is not None and eod_token not in ids:
            raise absent_end(path, eod_token)
        names = _ENDS if eod_token is None else (eod_token,)
        self._eod = next((ids[name] for name in names if name in ids), None)

    @property
    def eod_id(self) -> int:
        """The id that ends every document."""
        if self._eod is None:
            raise no_end(self.path, ", ".join(_ENDS))
        return self._eod

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, shape (number of tokens,), without an end of document."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Return the text of ids; an end of document decodes to nothing."""
        # An end of document that is not marked as special would be spelled out.
        return self._tokenizer.decode([int(i) for i in ids if i != self._eod], skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id, or nothing where the id has none."""
        return self._tokenizer.id_to_token(int(token)) or ""
