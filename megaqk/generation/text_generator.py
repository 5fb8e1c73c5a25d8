"""A model that continues texts: transformers' generation, with its cache and its sampling."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from transformers import GenerationConfig, TextStreamer
from transformers.utils.logging import disable_progress_bar

from megaqk.errors import UserError
from megaqk.exchange.in_memory import load_transformers
from megaqk.runtime.device import device_named


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the next token is chosen.

    Attributes:
        greedy: The likeliest; the rest says nothing then.
        temperature: What logits are divided by; None is 1.
        top_p: Only the likeliest that have this probability together are drawn from; None is all.
        top_k: Only so many of the likeliest; None is all.
    """

    greedy: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """For transformers, whose own defaults are not these."""
        if self.greedy:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": self.temperature or 1.0,
            "top_p": self.top_p or 1.0,
            "top_k": self.top_k or 0,
        }


class TextGenerator:
    """A model, its tokenizer and how it chooses.

    Args:
        path: See `load_transformers`.
        device: See `device_named`.
        tokenizer: See `load_transformers`.
        choice: How tokens are chosen.
        seed: Of the draws; None takes another one each time.

    Raises:
        UserError: The model cannot be opened.
    """

    def __init__(
        self, path: Path, device: str | None, tokenizer: Path | None, choice: Choice, *, seed: int | None = None
    ) -> None:
        where = device_named(device)
        disable_progress_bar()
        model, self._tokenizer = load_transformers(path, tokenizer)
        self._model, self._choice, self._path = model.to(where), choice, path
        ends = model.generation_config.eos_token_id
        self._ends = self._tokenizer.eos_token_id if ends is None else ends
        self._model.generation_config = GenerationConfig()  # what a folder says of sampling is not what was asked for
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)

    def ids(self, prompt: str) -> Tensor:
        """The tokens of a prompt as training has them, shape (1, length); of an empty one the end of a document.

        Raises:
            UserError: They leave no room in the model's context.
        """
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            ids = [self._tokenizer.eos_token_id]
            if ids == [None]:
                raise UserError(f"{self._path}: its tokenizer has no end of document: the prompt must not be empty")
        if len(ids) >= self._context:
            raise UserError(f"the prompt has {len(ids)} tokens: must be below {self._context}, the model's context")
        return torch.tensor([ids], device=self._model.device)

    @property
    def _pad(self) -> int:
        """What stands behind the end of one text where others go on; it decodes to nothing."""
        marks = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        return int(next((mark for mark in marks if mark is not None), 0))

    @property
    def _context(self) -> int:
        return int(self._model.config.max_position_embeddings)

    def texts(self, prompt: str, max_tokens: int, num: int = 1) -> list[str]:
        """A prompt with what comes after it.

        Args:
            prompt: What they continue.
            max_tokens: New tokens of each; fewer where the model ends the document, or its context ends.
            num: How many.
        """
        found = self._generate(self.ids(prompt), max_tokens, num)
        return list(self._tokenizer.batch_decode(found, skip_special_tokens=True))

    def stream(self, prompt: str, max_tokens: int, to: TextIO) -> None:
        """Write a prompt and one continuation, word by word; see `texts`."""

        class Streamer(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                to.write(text)
                to.flush()

        streamer = Streamer(self._tokenizer, skip_special_tokens=True)
        self._generate(self.ids(prompt), max_tokens, streamer=streamer)

    def _generate(self, ids: Tensor, max_tokens: int, num: int = 1, streamer: TextStreamer | None = None) -> Tensor:
        room = self._context - ids.shape[1]
        if max_tokens > room:
            print(f"megaqk: the model's context of {self._context} tokens leaves {room} new ones", file=sys.stderr)
        settings = GenerationConfig(
            max_new_tokens=min(max_tokens, room),
            num_return_sequences=num,
            eos_token_id=self._ends,
            pad_token_id=self._pad,
            **self._choice.settings,
        )
        found: Tensor = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=streamer
        )
        return found
