"""The timing multiplier m(t) of a rule, as a pure function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megaqk.config.qk_timing import TimingRule
from megaqk.config.run import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What turns a step into the units of a rule.

    Attributes:
        tokens_per_step: Tokens that one optimizer step learns from.
        total_steps: Steps of the whole run.
    """

    tokens_per_step: int
    total_steps: int

    @classmethod
    def of(cls, training: TrainingConfig) -> "Clock":
        """The clock of a run."""
        return cls(tokens_per_step=training.tokens_per_step, total_steps=training.steps)

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
        """The first step at or after a position, for display.

        Args:
            unit: Unit of `value`.
            value: A position.
        """
        scale = {"fraction": self.total_steps, "tokens": 1 / self.tokens_per_step}.get(unit, 1)
        step = max(0, math.floor(value * scale) - 1)
        while self.position(unit, step) < value:
            step += 1
        return step


def multiplier(
    rule: TimingRule, step: int, clock: Clock, held: float | None = None, tokens: int | None = None
) -> float:
    """Factor on the learning rate of what a rule acts on.

    With u the progress in the unit of the rule, a the held value, H = hold and E = release_end:

    - u < H: a.
    - H <= u < E: a + (1 - a) f(x), x = (u - H) / (E - H), with f(x) = x for linear and (1 - cos(pi x)) / 2 for cosine.
      A step release has E = H and so no such part.
    - u >= E: exactly 1.

    Args:
        rule: The rule.
        step: Steps already taken, that is the 0-based number of the step about to be taken.
        clock: Units of the run.
        held: The held value a where a depth profile gives a layer its own; None takes the rule's multiplier.
        tokens: Tokens already learned from; None for `step` times the clock's tokens a step.

    Returns:
        The multiplier, in [0, 1].
    """
    start = rule.multiplier if held is None else held
    position = clock.position(rule.unit, step, tokens)
    if position >= rule.end:
        return 1.0
    if position < rule.hold:
        return start
    progress = (position - rule.hold) / (rule.end - rule.hold)
    if rule.release == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return min(1.0, start + (1.0 - start) * progress)


def depth_factors(rule: TimingRule, layers: Sequence[int]) -> dict[int, float]:
    """The held value of each layer of a rule.

    With a the multiplier of the rule and i = 0 .. n-1 the place of a layer among the n selected ones, by depth:

    - uniform: a.
    - linear: 1 - (1 - a) (i + 1) / n.
    - geometric: a ** ((i + 1) / n).

    The deepest selected layer is held at exactly a.

    Args:
        rule: The rule.
        layers: The selected layers, in any order.

    Returns:
        The held value for each layer, by ascending depth.
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
