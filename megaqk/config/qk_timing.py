"""The query/key timing multiplier and its generalisation to rules."""

from typing import Literal

from pydantic import Field, model_validator

from megaqk.config.base import Section, refusal
from megaqk.config.model import Projection

SELECTOR_FORMS = ("fraction", "range", "list")


class LayerSelector(Section):
    """Exactly one way of naming blocks by their global depth l in [0, num_layers)."""

    fraction: tuple[float, float] | None = Field(
        None, strict=False, description="[low, high): blocks with low <= l / num_layers < high (1.0 includes the last)."
    )
    range: tuple[int, int] | None = Field(None, strict=False, description="[first, last + 1): a half-open range of l.")
    list: tuple[int, ...] | None = Field(None, strict=False, description="Explicit values of l.")

    @model_validator(mode="after")
    def _exactly_one(self) -> "LayerSelector":
        given = [name for name in SELECTOR_FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of fraction, range, list; got {' and '.join(given) or 'none'}")
        if self.fraction is not None and not 0 <= self.fraction[0] < self.fraction[1] <= 1:
            raise refusal("fraction", self.fraction, "must be [low, high) with 0 <= low < high <= 1")
        if self.range is not None and not 0 <= self.range[0] < self.range[1]:
            raise refusal("range", self.range, "must be [first, last + 1) with 0 <= first <= last")
        if self.list is not None and len(set(self.list)) != len(self.list):
            raise refusal("list", self.list, "must name a layer once")
        return self

    def resolve(self, num_layers: int) -> tuple[int, ...]:
        """The selected blocks of a model.

        Args:
            num_layers: Blocks of the whole model.

        Returns:
            Their global depths, ascending and not empty.

        Raises:
            ValueError: Where a named layer does not exist or none is selected; a `refusal` relative to the selector.
        """
        blocks = range(num_layers)
        if self.list is not None:
            if any(layer not in blocks for layer in self.list) or not self.list:
                raise refusal("list", self.list, f"must name layers in [0, {num_layers})")
            return tuple(sorted(self.list))
        if self.range is not None:
            if self.range[1] > num_layers:
                raise refusal("range", self.range, f"must not go beyond model.num_layers = {num_layers}")
            return tuple(range(*self.range))
        low, high = self.fraction or (0.0, 1.0)
        # A quotient and the literal of the same ratio round to the same float, so borders such as 0.3 of 10 are exact.
        selected = tuple(layer for layer in blocks if low <= layer / num_layers < high)
        if not selected:
            raise refusal("fraction", self.fraction, f"must select a layer of model.num_layers = {num_layers}")
        return selected


UPPER_HALF = LayerSelector(fraction=(0.5, 1.0))


class TimingRule(Section):
    """Multiply the learning rate of some projections of some blocks by m(t).

    m is `multiplier` until `hold`, returns to 1 by `release_end` and is exactly 1 from then on.
    """

    layers: LayerSelector = Field(UPPER_HALF, description="Blocks it acts on; the upper half by default.")
    projections: tuple[Projection, ...] = Field(
        ("query", "key"),
        strict=False,
        min_length=1,
        description="Weights it acts on, with their biases; embedding, which takes in learned positions and an untied "
        "head, stands outside the blocks, whatever layers says.",
    )
    multiplier: float = Field(0.1, ge=0, le=1, description="Factor a during the hold (of the deepest selected block).")
    unit: Literal["steps", "tokens", "fraction"] = Field("fraction", description="Unit of hold and release_end.")
    hold: float = Field(0.1, ge=0, description="End of the hold.")
    release: Literal["step", "linear", "cosine"] = Field("linear", description="Shape of the way back to 1.")
    release_end: float | None = Field(
        None, ge=0, description="End of the release; null means twice the hold. A step release ends with the hold."
    )
    depth_profile: Literal["uniform", "linear", "geometric"] = Field(
        "uniform", description="uniform: a for every selected block; the others approach a with depth."
    )

    @model_validator(mode="after")
    def _check(self) -> "TimingRule":
        if len(set(self.projections)) != len(self.projections):
            raise refusal("projections", self.projections, "must name a projection once")
        if self.release != "step" and self.end < self.hold:
            raise refusal("release_end", self.release_end, f"must not be below hold = {self.hold}")
        if self.unit != "fraction":
            # A share of the run where steps were asked for: the default hold, or a unit changed without its values.
            for key, value in (("hold", self.hold), ("release_end", self.end)):
                if 0 < value < 1:
                    raise refusal(key, value, f"must be 0 or at least 1 with unit = {self.unit}")
        if self.unit == "fraction" and self.hold > 1:
            raise refusal("hold", self.hold, "must be at most 1 with unit = fraction")
        if self.unit == "fraction" and self.end > 1:
            default = " (null is twice the hold)" if self.release_end is None else ""
            raise refusal("release_end", self.release_end, f"must be at most 1 with unit = fraction{default}")
        if self.depth_profile == "geometric" and self.multiplier == 0:
            raise refusal("multiplier", self.multiplier, "must be above 0 with depth_profile = geometric")
        if self.depth_profile != "uniform" and "embedding" in self.projections:
            raise refusal("depth_profile", self.depth_profile, "must be uniform for embedding, which has no depth")
        return self

    @property
    def end(self) -> float:
        """End of the release, in `unit`; a step release ends where the hold ends."""
        if self.release == "step":
            return self.hold
        return 2 * self.hold if self.release_end is None else self.release_end


class QkTimingConfig(TimingRule):
    """The intervention of arXiv 2605.10504 as one rule, or a list of rules for ablations."""

    enabled: bool = Field(False, description="Whether any multiplier acts.")
    weight_decay: Literal["scaled", "unscaled"] = Field(
        "scaled",
        description="scaled: decoupled decay is lr x m x weight_decay, as AdamW has it, so a multiplier of 0 freezes "
        "a weight; unscaled: decay stays lr x weight_decay whatever m is (needs multipliers above 0).",
    )
    rules: tuple[TimingRule, ...] = Field(
        (),
        strict=False,
        description="A list of rules, each with the keys from layers to depth_profile, in their place.",
    )

    @model_validator(mode="after")
    def _check_rules(self) -> "QkTimingConfig":
        single = [name for name in TimingRule.model_fields if name in self.model_fields_set]
        if self.rules and single:
            raise refusal(single[0], getattr(self, single[0]), "must not stand beside rules; put it into a rule")
        if self.weight_decay == "unscaled" and any(rule.multiplier == 0 for rule in self.active_rules):
            raise refusal("weight_decay", self.weight_decay, "must be scaled with a multiplier of 0")
        return self

    @property
    def active_rules(self) -> tuple[TimingRule, ...]:
        """The rules in force; empty when the multiplier is switched off."""
        if not self.enabled:
            return ()
        return self.rules or (self,)

    def rule_key(self, index: int) -> str:
        """Where rule `index` of `active_rules` stands in the configuration, for messages."""
        return f"qk_timing.rules[{index}]" if self.rules else "qk_timing"

    def check_layers(self, num_layers: int) -> None:
        """Refuse rules that name layers the model lacks, and rules that meet on one projection of one layer.

        Args:
            num_layers: Blocks of the whole model.

        Raises:
            ValueError: One line with the full key.
        """
        owner: dict[tuple[int | None, str], int] = {}
        for index, rule in enumerate(self.active_rules):
            try:
                layers: tuple[int | None, ...] = rule.layers.resolve(num_layers)
            except ValueError as error:
                raise ValueError(f"{self.rule_key(index)}.layers.{error}") from None
            for projection in rule.projections:
                for layer in (None,) if projection == "embedding" else layers:
                    first = owner.setdefault((layer, projection), index)
                    if first != index:
                        where = projection if layer is None else f"{projection} of layer {layer}"
                        raise ValueError(
                            f"{self.rule_key(index)}: acts on {where}, as {self.rule_key(first)} does; "
                            "rules must not overlap"
                        )
