"""Tokenizers, as they are used: text to ids and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import tokenizers

from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

END_OF_DOCUMENT = "<|endoftext|>"
# What the common model families call the end of a document.
_END_NAMES = (
    *(END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<eod>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<EOS_TOKEN>", "[SEP]"),
)

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer(ABC):
    """What data preparation and generation need of a tokenizer."""

    path: Path
    vocab_size: int  # without any padding for tensor parallelism
    _eod: int | None

    def _find_end(self, id_of: Callable[[str], int | None], eod_token: str | None) -> None:
        found = map(id_of, _END_NAMES if eod_token is None else [eod_token])
        self._eod = next((one for one in found if one is not None), None)
        if self._eod is None and eod_token is not None:
            raise UserError(
                f"{self.path}: has no token {eod_token}, which --eod-token or data.eod_token names: must be one it has"
            )

    @property
    def eod_id(self) -> int:
        """The id that ends every document; text never encodes to it."""
        if self._eod is None:
            raise UserError(
                f"{self.path}: no end-of-document token: must have one of an eos id, {', '.join(_END_NAMES)}, or name "
                "its own with --eod-token or data.eod_token"
            )
        return self._eod

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, shape (number of tokens,), without an end of document."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Return the text of ids; an end of document decodes to nothing."""
        # An end of document that is not marked as special would be spelled out.
        return self._decode([int(i) for i in ids if i != self._eod])

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _decode_batch(self, rows: list[list[int]]) -> list[str]: ...

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Return how many bytes of text, in UTF-8, each id stands for, shape (2, vocab_size).

        The first row holds as the first token of a document, of which some tokenizers drop a space, the second after
        another token: over a document they add up to the bytes of what `decode` makes of it. An end of document and
        what else decodes to nothing have none; an unknown token has those of what it is decoded to.
        """
        alone = self._decode_batch([[token] for token in range(self.vocab_size)])
        before = next((token for token, text in enumerate(alone) if text.isascii() and text.isalnum()), 0)
        after = self._decode_batch([[before, token] for token in range(self.vocab_size)])
        counts = np.array([[len(text.encode()) for text in texts] for texts in (alone, after)], dtype=np.int64)
        counts[1] = np.maximum(counts[1] - counts[0, before], 0)
        for token in (token for token, text in enumerate(alone) if "\ufffd" in text):
            # A part of a character: spelled as its byte, or as byte-level vocabularies do, with a character for each.
            if "\ufffd" not in (piece := self.piece(token)):
                counts[:, token] = 1 if _BYTE.fullmatch(piece) else len(piece)
        counts[:, [] if self._eod is None else self._eod] = 0
        return counts

    @abstractmethod
    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id, or nothing where the id has none."""


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `.model` file."""

    def __init__(self, path: Path, eod_token: str | None = None) -> None:
        self.path = path
        with os_errors_named(path):
            model = path.read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            # Nothing parses as a model without pieces.
            if not model or not self._processor.LoadFromSerializedProto(model) or not self._processor.get_piece_size():
                raise ValueError("no pieces")
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a sentencepiece model") from error
        self.vocab_size = int(self._processor.get_piece_size())
        eos = int(self._processor.eos_id())
        if eod_token is None and eos >= 0:
            self._eod = eos
        else:
            self._find_end(self._id_of, eod_token)

    def _id_of(self, piece: str) -> int | None:
        # What it does not know has the id of the unknown, which is a piece too.
        found = int(self._processor.piece_to_id(piece))
        return found if found >= 0 and self._processor.id_to_piece(found) == piece else None

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""
        ids: list[npt.NDArray[np.int32]] = self._processor.encode(list(texts), out_type="numpy", num_threads=1)
        return ids

    def _decode(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))

    def _decode_batch(self, rows: list[list[int]]) -> list[str]:
        return list(map(str, self._processor.decode(rows)))

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id."""
        return str(self._processor.id_to_piece(int(token)))


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` file, through the `tokenizers` library."""

    def __init__(self, path: Path, eod_token: str | None = None) -> None:
        self.path = path
        with os_errors_named(path):
            text = path.read_text(encoding="utf-8", errors="replace")
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
        self._find_end(ids.get, eod_token)

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _decode_batch(self, rows: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(rows, skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id, or nothing where the id has none."""
        return self._tokenizer.id_to_token(int(token)) or ""


def load_tokenizer(path: Path | str, eod_token: str | None = None) -> Tokenizer:
    """Open a sentencepiece `.model` or a Hugging Face `tokenizer.json`.

    The token that ends documents is the one spelled `eod_token`; None finds it by the names that are common.

    Raises:
        UserError: The file is missing, is no tokenizer or lacks `eod_token`.
    """
    path = Path(path)
    kinds = {".model": SentencePieceTokenizer, ".json": HuggingFaceTokenizer}
    if path.suffix not in kinds:
        raise UserError(f"{path}: a tokenizer must be a sentencepiece .model or a tokenizer.json")
    return kinds[path.suffix](path, eod_token)
