"""What a study file holds."""

from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from megaqk.config.base import Section, refusal


class SizeConfig(Section):
    """A study at one size."""

    seeds: tuple[int, ...] | None = Field(None, strict=False, min_length=1, description="Instead of the study's own.")
    processes: int = Field(1, ge=1, description="Of one run.")
    config: dict[str, Any] = Field({}, description="Laid over the base, under the arms.")


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
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="By name, what is laid over base and size.")
    comparisons: tuple[Annotated[tuple[str, str], Strict(False)], ...] = Field(
        (), strict=False, description="Pairs of arms: which, and against which; the report's paired differences."
    )
    analysis: bool = Field(True, description="Whether each run that is finished is analysed, as `megaqk probe` does.")
    sizes: dict[str, SizeConfig] = Field(min_length=1, description="By name.")

    @model_validator(mode="after")
    def _check(self) -> "StudyConfig":
        for index, pair in enumerate(self.comparisons):
            for arm in pair:
                if arm not in self.arms:
                    raise refusal(f"comparisons[{index}]", arm, f"must be an arm: {', '.join(self.arms)}")
        for name, seeds in (
            ("seeds", self.seeds),
            *((f"sizes.{key}.seeds", size.seeds) for key, size in self.sizes.items()),
        ):
            if seeds and len(set(seeds)) != len(seeds):
                raise refusal(name, list(seeds), "must name a seed once")
        for arm in self.arms:
            if not arm.replace("-", "").replace("_", "").replace(".", "").isalnum() or arm.startswith("."):
                raise refusal("arms", arm, "must be a name of letters, digits, and - _ . between them")
        return self
