"""Tokenizers, as they are used: text to ids and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import sentencepiece

from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

END_OF_DOCUMENT = "<|endoftext|>"
_ENDS = (END_OF_DOCUMENT, "<eod>", "</s>")


class Tokenizer(Protocol):
    """What data preparation and generation need of a tokenizer.

    Attributes:
        path: The file it was read from.
        vocab_size: Number of ids, without any padding for tensor parallelism.
    """

    path: Path
    vocab_size: int

    @property
    def eod_id(self) -> int:
        """The id that ends every document; text never encodes to it.

        Raises:
            UserError: None was named and the tokenizer has none with a known name. It can still be looked at.
        """

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, shape (number of tokens,), without an end of document."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Return the text of ids; an end of document decodes to nothing."""

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id."""


def absent_end(path: Path, eod_token: str) -> UserError:
    """The refusal of a token to end documents with that the tokenizer does not have."""
    return UserError(f"{path}: has no token {eod_token}, which --eod-token or data.eod_token names: must be one it has")


def no_end(path: Path, known: str) -> UserError:
    """The refusal of a tokenizer in which no end of document was found by name."""
    return UserError(
        f"{path}: no end-of-document token: must have one of {known}, or name its own with --eod-token or "
        "data.eod_token"
    )


class SentencePieceTokenizer:
    """A sentencepiece `.model` file; see `Tokenizer`."""

    def __init__(self, path: Path, eod_token: str | None = None) -> None:
        with os_errors_named(path):
            model = path.read_bytes()
        self.path = path
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{path}: not a sentencepiece model") from error
        self.vocab_size = int(self._processor.get_piece_size())
        self._eod = self._find_eod() if eod_token is None else self._id_of(eod_token)
        if self._eod is None and eod_token is not None:
            raise absent_end(path, eod_token)

    @property
    def eod_id(self) -> int:
        """The id that ends every document."""
        if self._eod is None:
            raise no_end(self.path, f"an eos id, {', '.join(_ENDS)}")
        return self._eod

    def _id_of(self, piece: str) -> int | None:
        # What it does not know has the id of the unknown, which is a piece too.
        found = int(self._processor.piece_to_id(piece))
        return found if found >= 0 and self._processor.id_to_piece(found) == piece else None

    def _find_eod(self) -> int | None:
        eos = int(self._processor.eos_id())
        known = [eos if eos >= 0 else None, *map(self._id_of, _ENDS)]
        return next((found for found in known if found is not None), None)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, shape (number of tokens,), without an end of document."""
        ids: npt.NDArray[np.int32] = self._processor.encode(text, out_type="numpy")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""
        ids: list[npt.NDArray[np.int32]] = self._processor.encode(list(texts), out_type="numpy", num_threads=1)
        return ids

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Return the text of ids; an end of document decodes to nothing."""
        # An end of document that is not a control piece would be spelled out.
        return str(self._processor.decode([int(i) for i in ids if i != self._eod]))

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id."""
        return str(self._processor.id_to_piece(int(token)))


def load_tokenizer(path: Path | str, eod_token: str | None = None) -> Tokenizer:
    """Open a sentencepiece `.model` or a Hugging Face `tokenizer.json`.

    Args:
        path: The file.
        eod_token: Spelling of the token that ends documents; None finds it by the names that are common.

    Raises:
        UserError: The file is missing, is no tokenizer or lacks `eod_token`.
    """
    path = Path(path)
    if path.suffix == ".json":
        from megaqk.data.hf_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path, eod_token)
    if path.suffix != ".model":
        raise UserError(f"{path}: a tokenizer must be a sentencepiece .model or a tokenizer.json")
    return SentencePieceTokenizer(path, eod_token)
