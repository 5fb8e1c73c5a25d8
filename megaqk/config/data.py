"""Where the tokens come from."""

import math
from typing import Literal

from pydantic import Field, model_validator

from megaqk.config.base import Section


class DataConfig(Section):
    """A prepared corpus, or a raw text that is prepared on first use; exactly one of the two."""

    corpus: str | None = Field(
        None, description="Prefix of a Megatron corpus: PREFIX.bin and PREFIX.idx, relative to the working directory."
    )
    text: str | None = Field(
        None, description="Raw text to prepare on first use: a file, a glob pattern, or builtin for the shipped text."
    )
    text_field: str = Field("text", description="The field of text's records that holds the text.")
    bad_documents: Literal["stop", "skip"] = Field(
        "stop", description="What a malformed document in text does: stop with its line, or be skipped and counted."
    )
    tokenizer: str | None = Field(
        None, description="A sentencepiece .model; null trains one on text, or takes the one named beside corpus."
    )
    cache_dir: str = Field("cache/data", description="Directory in which what is made from text is kept.")
    vocab_size: int = Field(4096, ge=2, description="Size of the tokenizer trained on text when none is given.")
    split: tuple[float, float, float] = Field(
        (0.9, 0.05, 0.05),
        strict=False,
        description="Fractions of the documents, in file order, for training, validation and test.",
    )
    seed: int | None = Field(None, ge=0, description="Seed of the sample order; null takes training.seed.")

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if (self.corpus is None) == (self.text is None):
            raise ValueError(f"corpus = {self.corpus}, text = {self.text}: give exactly one of the two")
        if any(not 0 <= part <= 1 for part in self.split) or not math.isclose(sum(self.split), 1, abs_tol=1e-6):
            raise ValueError(f"split = {list(self.split)}: must be three fractions that add up to 1")
        return self
