"""What the report needs of the files that it reads."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, Strict, ValidationError, model_validator

from megaqk.config.base import Section, refusal
from megaqk.config.problems import describe
from megaqk.errors import UserError

_ByLayer = list[float | None]
_ByHead = list[list[float | None]]
_Schema = TypeVar("_Schema", bound=BaseModel)


class StudyFile(Section, extra="ignore"):
    """`study.yaml`, which `Study.keep` writes."""

    name: str
    description: str
    size: str
    command: str
    seeds: tuple[int, ...] = Field(strict=False)
    arms: dict[str, Any]
    comparisons: tuple[Annotated[tuple[str, str], Strict(False)], ...] = Field(strict=False)
    interactions: tuple[Annotated[tuple[str, str, str, str], Strict(False)], ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _check(self) -> "StudyFile":
        for key in ("comparisons", "interactions"):
            for arm in (arm for arms in getattr(self, key) for arm in arms if arm not in self.arms):
                raise refusal(key, arm, f"must be an arm: {', '.join(self.arms)}")
        return self


class _Factor(Section, extra="ignore"):
    query: _ByLayer
    key: _ByLayer


class _Share(Section, extra="ignore"):
    weights: _ByLayer
    features: _ByLayer
    interaction: _ByLayer


class _Pair(Section, extra="ignore"):
    to: int
    step_size_factor: _Factor
    residual_energy: _ByLayer
    total: _ByLayer
    share: _Share


class AnalysisFile(Section, extra="ignore"):
    """`analysis.json`; docs/analysis.md describes it."""

    steps: list[int] = Field(min_length=1)
    tokens: list[int]
    num_layers: int
    upper: list[int]
    reference_step: int
    probe_tokens: int
    attention_entropy: list[_ByHead]
    stability_cka: list[_ByLayer]
    reliance_layer: list[_ByLayer]
    reliance_head: list[_ByHead]
    timing_index: dict[str, float | None]
    pathwise: list[_Pair]

    @model_validator(mode="after")
    def _check(self) -> "AnalysisFile":
        for key in ("tokens", "attention_entropy", "stability_cka", "reliance_layer"):
            if len(getattr(self, key)) != len(self.steps):
                raise refusal(key, len(getattr(self, key)), f"must have {len(self.steps)} entries, as steps has")
        for index, pair in enumerate(self.pathwise):
            if pair.to not in self.steps:
                raise refusal(f"pathwise[{index}].to", pair.to, "must be one of steps")
        return self


def checked(schema: type[_Schema], content: dict[str, Any], path: Path, advice: str) -> _Schema:
    """What a file holds, checked.

    Raises:
        UserError: It names the file, what is wrong in it and what to do.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: is damaged: {describe(error, schema)[0]}; {advice}") from None
