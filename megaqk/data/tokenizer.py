"""Tokenizers, as they are used: text to ids and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import sentencepiece

from megaqk.data.files import os_errors_named
from megaqk.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"


class Tokenizer(Protocol):
    """What data preparation and generation need of a tokenizer.

    Attributes:
        path: The file it was read from.
        vocab_size: Number of ids, without any padding for tensor parallelism.
        eod_id: The id that ends every document; text never encodes to it.
    """

    path: Path
    vocab_size: int
    eod_id: int

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, shape (number of tokens,), without an end of document."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Return the ids of each text."""

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Return the text of ids; an end of document decodes to nothing."""

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id."""


class SentencePieceTokenizer:
    """A sentencepiece `.model` file; see `Tokenizer`."""

    def __init__(self, path: Path) -> None:
        with os_errors_named(path):
            model = path.read_bytes()
        self.path = path
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{path}: not a sentencepiece model") from error
        self.vocab_size = int(self._processor.get_piece_size())
        self.eod_id = self._find_eod()

    def _find_eod(self) -> int:
        eos = int(self._processor.eos_id())
        if eos >= 0:
            return eos
        for piece in (END_OF_DOCUMENT, "<eod>", "</s>"):
            found = int(self._processor.piece_to_id(piece))
            if found != self._processor.unk_id():
                return found
        raise UserError(f"{self.path}: no end-of-document token: must define an eos id, {END_OF_DOCUMENT} or <eod>")

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
        return str(self._processor.decode([int(i) for i in ids]))

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id."""
        return str(self._processor.id_to_piece(int(token)))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a sentencepiece `.model` or a Hugging Face `tokenizer.json`.

    Raises:
        UserError: The file is missing, is no tokenizer or has no end-of-document token.
    """
    path = Path(path)
    if path.suffix == ".json":
        from megaqk.data.hf_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path)
    if path.suffix != ".model":
        raise UserError(f"{path}: a tokenizer must be a sentencepiece .model or a tokenizer.json")
    return SentencePieceTokenizer(path)
