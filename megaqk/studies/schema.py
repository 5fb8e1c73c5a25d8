"""What a study file holds."""

from collections.abc import Mapping
from copy import deepcopy
from functools import reduce
from itertools import product
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from megaqk.config.base import Section, refusal


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another one's values in their places; what names layers is replaced as a whole."""
    merged = deepcopy(dict(base))
    for key, value in changes.items():
        below = merged.get(key)
        inside = isinstance(below, Mapping) and isinstance(value, Mapping) and key != "layers"
        merged[key] = laid_over(below, value) if inside else deepcopy(value)  # type: ignore[arg-type]
    return merged


class SizeConfig(Section):
    """A study at one size."""

    seeds: tuple[int, ...] | None = Field(None, strict=False, min_length=1, description="Instead of the study's own.")
    processes: int = Field(1, ge=1, description="Of one run.")
    config: dict[str, Any] = Field({}, description="Laid over the base, under the arms.")
    arms: dict[str, dict[str, Any]] = Field({}, description="By name, what is laid over an arm at this size.")


class StudyConfig(Section):
    """Arms by seeds from one base configuration."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="Names its folder.")
    description: str = Field("", description="What is asked, for the report.")
    base: dict[str, Any] = Field({}, description="Configuration keys of every run.")
    seeds: tuple[int, ...] = Field(
        strict=False,
        min_length=1,
        description="Values of training.seed, which decides initial weights and order of samples, alike in all arms.",
    )
    arms: dict[str, dict[str, Any]] = Field({}, description="By name, what is laid over base and size.")
    grid: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="Axes, each with values by name: more arms, one for each choice of a value on every axis."
    )
    baseline: str | None = Field(None, description="The arm against which all others are compared.")
    comparisons: tuple[Annotated[tuple[str, str], Strict(False)], ...] = Field(
        (), strict=False, description="More pairs of arms: which, and against which."
    )
    interactions: tuple[Annotated[tuple[str, str, str, str], Strict(False)], ...] = Field(
        (),
        strict=False,
        description="Four arms: whether the first differs from the second as the third does from the fourth.",
    )
    analysis: bool = Field(
        True, description="Whether each run that is finished is analysed, as `megaqk probe --initial` does."
    )
    sizes: dict[str, SizeConfig] = Field(min_length=1, description="By name.")

    @property
    def all_arms(self) -> dict[str, dict[str, Any]]:
        """Arms as given, then those of the grid, by their values' names."""
        arms = dict(self.arms)
        for choice in product(*(values.items() for values in self.grid.values())) if self.grid else ():
            arms["-".join(name for name, _ in choice)] = reduce(laid_over, (changes for _, changes in choice))
        return arms

    @property
    def all_comparisons(self) -> tuple[tuple[str, str], ...]:
        """Every arm against the baseline, then the others."""
        first = [] if self.baseline is None else [(arm, self.baseline) for arm in self.all_arms if arm != self.baseline]
        return (*first, *self.comparisons)

    @model_validator(mode="after")
    def _check(self) -> "StudyConfig":
        arms = self.all_arms
        named = [("baseline", self.baseline)] if self.baseline is not None else []
        for key in ("comparisons", "interactions"):
            named += [(f"{key}[{index}]", arm) for index, arms_of in enumerate(getattr(self, key)) for arm in arms_of]
        named += [(f"sizes.{name}.arms", arm) for name, size in self.sizes.items() for arm in size.arms]
        pairs = [pair for pair in self.all_comparisons if pair[0] == pair[1] or self.all_comparisons.count(pair) > 1]
        if pairs:
            raise refusal("comparisons", list(pairs[0]), "must be two arms, and once (baseline compares with all)")
        for key, arm in named:
            if arm not in arms:
                raise refusal(key, arm, f"must be an arm: {', '.join(arms)}")
        for name, seeds in (
            ("seeds", self.seeds),
            *((f"sizes.{key}.seeds", size.seeds) for key, size in self.sizes.items()),
        ):
            if seeds and len(set(seeds)) != len(seeds):
                raise refusal(name, list(seeds), "must name a seed once")
        if not arms:
            raise refusal("arms", {}, "must have at least 1 entry, or a grid")
        for arm in arms:
            if not arm.replace("-", "").replace("_", "").replace(".", "").isalnum() or arm.startswith("."):
                raise refusal("arms", arm, "must be a name of letters, digits, and - _ . between them")
        return self
