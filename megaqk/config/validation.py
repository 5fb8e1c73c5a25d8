"""On which texts, how often and on how much of them the model is evaluated."""

import re

from pydantic import Field, model_validator

from megaqk.config.base import Section, refusal


class ValidationSetConfig(Section):
    """A text beside the run's own that the model is evaluated on."""

    name: str = Field(description="What its records are called: valid/NAME/loss.")
    text: str | None = Field(
        None,
        description="Raw text, as data.text; prepared on first use with the run's tokenizer, kept in data.cache_dir.",
    )
    corpus: str | None = Field(
        None, description="Prefix of a Megatron corpus, as data.corpus, made with the run's tokenizer."
    )
    batches: int | None = Field(None, ge=1, description="Global batches of an evaluation; null takes all of it.")

    @model_validator(mode="after")
    def _check(self) -> "ValidationSetConfig":
        if not re.fullmatch("[A-Za-z0-9._-]+", self.name):
            raise refusal("name", self.name, "must be of letters, digits, dots, underscores and hyphens")
        if (self.text is None) == (self.corpus is None):
            raise refusal("text", self.text, "exactly one of text and corpus must be given")
        return self


class EvaluationConfig(Section):
    """How often the model is evaluated, on which texts and on how much of them; each sample is read once at most."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0 evaluates at the end only.")
    batches: int | None = Field(
        8,
        ge=0,
        description="Global batches of the validation part of data.split, from its beginning; null takes all of it, 0 "
        "none.",
    )
    sets: tuple[ValidationSetConfig, ...] = Field(
        (),
        strict=False,
        description="Texts that are evaluated beside it: a name, a text or corpus, and batches (null: all of it) each.",
    )
    test: bool = Field(
        False,
        description="Evaluate the whole test part of data.split at the end, once. Without data.split, 5 % of the "
        "documents are then held back for it.",
    )

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        names = [one.name for one in self.sets]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise refusal(f"sets[{number}].name", name, "two are called so; must be another")
        return self
