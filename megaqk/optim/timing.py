"""The timing multiplier m(t) of a rule, as a pure function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megaqk.config.qk_timing import TimingRule
from megaqk.config.root import Config
from megaqk.optim.multipliers import Moment, Multiplier


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What turns a step into the units of a rule.

    Attributes:
        tokens_per_step: Tokens that one optimizer step learns from.
        total_steps: Steps that fractions are of.
    """

    tokens_per_step: int
    total_steps: int

    @classmethod
    def of(cls, config: Config) -> "Clock":
        """The clock of a run."""
        return cls(tokens_per_step=config.training.tokens_per_step, total_steps=config.schedule_steps)

    def position(self, unit: str, step: int, tokens: int | None = None) -> int | float:
        """Progress when `step` steps have been taken, in steps, tokens or as a fraction of the run.

        Steps and tokens are exact integers. The fraction is one correctly rounded division, so it equals the literal
        of the same ratio in a configuration and a border such as 0.3 of 1000 steps falls exactly on step 300.
        """
        if unit == "fraction":
            return step / self.total_steps
        if unit == "tokens":
            return step * self.tokens_per_step if tokens is None else tokens
        return step

    def first_step(self, unit: str, value: float) -> int:
        """The first step at or after a position in a unit, for display."""
        scale = {"fraction": self.total_steps, "tokens": 1 / self.tokens_per_step}.get(unit, 1)
        step = max(0, math.floor(value * scale) - 1)
        while self.position(unit, step) < value:
            step += 1
        return step


@dataclass(frozen=True, kw_only=True)
class Timing(Multiplier):
    """The multiplier of what a rule acts on.

    Attributes:
        rule: The rule.
        clock: Units of the run.
        held: Value during the hold: the rule's multiplier, or a layer's own under a depth profile.
    """

    rule: TimingRule
    clock: Clock
    held: float

    def at(self, moment: Moment) -> float:
        """m, in [0, 1].

        With u the progress in the unit of the rule, a the held value, H = hold and E = release_end:

        - u < H: a.
        - H <= u < E: a + (1 - a) f(x), x = (u - H) / (E - H), with f(x) = x for linear and (1 - cos(pi x)) / 2 for
          cosine. A step release has E = H and so no such part.
        - u >= E: exactly 1.
        """
        rule = self.rule
        position = self.clock.position(rule.unit, moment.step, moment.tokens)
        if position >= rule.end:
            return 1.0
        if position < rule.hold:
            return self.held
        progress = (position - rule.hold) / (rule.end - rule.hold)
        if rule.release == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return min(1.0, self.held + (1.0 - self.held) * progress)

    def key_steps(self) -> tuple[int, int, int]:
        """The steps at which the hold ends, the release is half over, and it ends."""
        hold, end = (self.clock.first_step(self.rule.unit, value) for value in (self.rule.hold, self.rule.end))
        return hold, (hold + end) // 2, end


def depth_factors(rule: TimingRule, layers: Sequence[int]) -> dict[int, float]:
    """The held value of each layer of a rule.

    With a the multiplier of the rule and i = 0 .. n-1 the place of a layer among the n selected ones, by depth:

    - uniform: a.
    - linear: 1 - (1 - a) (i + 1) / n.
    - geometric: a ** ((i + 1) / n).

    The deepest selected layer is held at exactly a. Returned by ascending depth, whatever the order of `layers`.
    """
    ordered, a = sorted(layers), rule.multiplier
    count = len(ordered)
    factors = {}
    for index, layer in enumerate(ordered):
        share = (index + 1) / count
        if rule.depth_profile == "uniform" or share == 1.0:
            factors[layer] = a
        elif rule.depth_profile == "linear":
            factors[layer] = 1.0 - (1.0 - a) * share
        else:
            factors[layer] = a**share
    return factors
