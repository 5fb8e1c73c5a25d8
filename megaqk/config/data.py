"""Where the tokens come from."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaqk.config.base import Section, refusal

Fractions = tuple[float, float, float]

SPLIT_WITH_TEST: Fractions = (0.9, 0.05, 0.05)
"""What `evaluation.test` makes of a split that is not given."""


def _check_split(split: Fractions) -> None:
    if any(not 0 <= part <= 1 for part in split) or not math.isclose(sum(split), 1, abs_tol=1e-6):
        raise refusal("split", list(split), "must be three fractions that add up to 1")


class SourceConfig(Section):
    """One of several corpora that a run draws from."""

    corpus: str = Field(description="Prefix of a Megatron corpus, as data.corpus.")
    weight: float = Field(
        ge=0, allow_inf_nan=False, description="Share of the samples, relative to the other sources' weights."
    )
    name: str = Field("", description="What phases call it; default: the last part of corpus.")
    split: Fractions | None = Field(None, strict=False, description="As data.split, for this source.")

    @property
    def label(self) -> str:
        """The name, given or derived."""
        return self.name or self.corpus.rsplit("/", 1)[-1]

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if self.split is not None:
            _check_split(self.split)
        return self


class PhaseConfig(Section):
    """New weights from a point of the run on; sources that are not named are not drawn."""

    start_step: int | None = Field(None, ge=1, description="First step; moves if the global batch size changes.")
    start_tokens: int | None = Field(None, ge=1, description="Tokens trained on before; rounded up to a whole sample.")
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(description="Source name -> weight.")

    @model_validator(mode="after")
    def _check(self) -> "PhaseConfig":
        if (self.start_step is None) == (self.start_tokens is None):
            raise refusal("start_step", self.start_step, "exactly one of start_step and start_tokens must be given")
        if not any(self.weights.values()):
            raise refusal("weights", self.weights, "at least one must be above 0")
        return self


class DataConfig(Section):
    """A prepared corpus, a blend of several, or a raw text that is prepared on first use; exactly one of them."""

    corpus: str | None = Field(
        None, description="Prefix of a Megatron corpus: PREFIX.bin and PREFIX.idx, relative to the working directory."
    )
    sources: tuple[SourceConfig, ...] | None = Field(
        None, strict=False, min_length=1, description="Corpora to blend, all made with data.tokenizer."
    )
    phases: tuple[PhaseConfig, ...] = Field(
        (), strict=False, description="Changes of the sources' weights, in the order in which they come."
    )
    text: str | None = Field(
        None, description="Raw text to prepare on first use: a file, a glob pattern, or builtin for the shipped text."
    )
    text_field: str = Field("text", description="The field of text's records that holds the text.")
    bad_documents: Literal["stop", "skip"] = Field(
        "stop", description="What a malformed document in text does: stop with its line, or be skipped and counted."
    )
    separate_documents: bool = Field(
        False,
        description="Keep documents that share a sample apart: attention and positions start anew with each, and a "
        "document's last token is not asked for the first of the next.",
    )
    tokenizer: str | None = Field(
        None,
        description="A sentencepiece .model or a tokenizer.json; null trains one on text, or takes the one named "
        "beside corpus.",
    )
    eod_token: str | None = Field(
        None,
        min_length=1,
        description="The token of tokenizer that ends documents; null takes the one that corpus was prepared with, or "
        "finds it by the common names.",
    )
    cache_dir: str = Field("cache/data", description="Directory in which what is made from text is kept.")
    vocab_size: int = Field(4096, ge=2, description="Size of the tokenizer trained on text when none is given.")
    split: Fractions = Field(
        (0.95, 0.05, 0.0),
        strict=False,
        description="Fractions of the documents, in file order, for training, validation and test; the test part is "
        "held back, and read with evaluation.test alone.",
    )
    seed: int | None = Field(None, ge=0, description="Seed of the sample order; null takes training.seed.")

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        given = [name for name in ("corpus", "sources", "text") if getattr(self, name) is not None]
        if len(given) != 1:
            remedy = f"exactly one of corpus, sources and text must be given; got {', '.join(given) or 'none'}"
            name = given[-1] if given else "corpus"
            remedy += f"; set the others to null, as in data.{name}=null" if given else ""
            raise refusal(name, getattr(self, name), remedy)
        _check_split(self.split)
        if self.eod_token is not None and self.tokenizer is None:
            raise refusal("eod_token", self.eod_token, "needs tokenizer, which is null")
        if self.sources is not None:
            self._check_blend(self.sources)
        elif self.phases:
            raise refusal("phases[0].weights", self.phases[0].weights, "need data.sources, whose weights they change")
        return self

    def _check_blend(self, sources: tuple[SourceConfig, ...]) -> None:
        labels = [source.label for source in sources]
        for number, label in enumerate(labels):
            if label in labels[:number]:
                raise refusal(f"sources[{number}].name", label, "two are called so; give them names")
        if self.tokenizer is None:
            raise refusal("tokenizer", None, "must be given with data.sources")
        if not any(source.weight for source in sources):
            raise refusal("sources[0].weight", sources[0].weight, "at least one source must have a weight above 0")
        for number, phase in enumerate(self.phases):
            for name in phase.weights:
                if name not in labels:
                    allowed = f"no source is called {name}, the names are {', '.join(labels)}"
                    raise refusal(f"phases[{number}].weights", phase.weights, allowed)
