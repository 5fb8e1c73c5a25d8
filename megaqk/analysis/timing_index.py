"""Whether the upper layers become sharp before the lower ones are stable."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megaqk.config.qk_timing import UPPER_HALF
from megaqk.config.root import Config
from megaqk.errors import UserError

STABILITY_THRESHOLD = 0.9
"""Of the lower layers' mean CKA with the reference; see docs/analysis.md."""
LEAST_SHARPENING = 0.01
"""Rise of the upper layers' sharpness below which half of the way is no threshold."""


def upper_layers(config: Config, first: int | None = None) -> tuple[int, ...]:
    """The upper layers of a run.

    Args:
        config: The run.
        first: The first of them; None: as the run's rule for query and key has it where that selects upper layers,
            those from one above the first to the last, else l >= L / 2.

    Raises:
        UserError: `first` is no layer that has others below it, or no layer has.
    """
    num_layers = config.model.num_layers
    if num_layers == 1:
        raise UserError("model.num_layers = 1: must be at least 2, for upper and lower layers")
    if first is not None:
        if not 0 < first < num_layers:
            raise UserError(f"--upper = {first}: must be in [1, model.num_layers = {num_layers})")
        return tuple(range(first, num_layers))
    for rule in config.qk_timing.active_rules:
        layers = rule.layers.resolve(num_layers)
        if {"query", "key"} <= set(rule.projections) and layers[0] and layers == (*range(layers[0], num_layers),):
            return layers
    return UPPER_HALF.resolve(num_layers)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a group of layers counts as sharp or stable.

    Attributes:
        sharpness: Of 1 - mean normalised entropy; None: see `half_way`.
        stability: Of the mean CKA.
    """

    sharpness: float | None = None
    stability: float = STABILITY_THRESHOLD


def timing_index(
    steps: Sequence[int],
    tokens: Sequence[int],
    sharpness: Sequence[float],
    stability: Sequence[float],
    thresholds: Thresholds,
) -> dict[str, Any]:
    """The upper sharp step, the lower stable step, and their difference: negative means premature.

    Args:
        steps: Of the checkpoints.
        tokens: Learned from at each.
        sharpness: Of the upper layers at each.
        stability: Of the lower layers at each.
        thresholds: When they count as sharp and stable.

    Returns:
        The section of `analysis.json`; None for what has not happened.
    """
    sharp = half_way(sharpness[0], sharpness[-1]) if thresholds.sharpness is None else thresholds.sharpness
    index: dict[str, Any] = {"sharpness_threshold": sharp, "stability_threshold": thresholds.stability}
    for unit, suffix, axis in (("steps", "step", steps), ("tokens", "tokens", tokens)):
        upper = None if sharp is None else first_crossing(axis, sharpness, sharp)
        lower = last_crossing(axis, stability, thresholds.stability)
        index |= {f"upper_sharp_{suffix}": upper, f"lower_stable_{suffix}": lower}
        index[unit] = None if upper is None or lower is None else upper - lower
    return index


def half_way(first: float, last: float) -> float | None:
    """The threshold between a first and a last sharpness; None where that is hardly a rise."""
    return (first + last) / 2 if last - first >= LEAST_SHARPENING else None


def first_crossing(axis: Sequence[float], values: Sequence[float], threshold: float) -> float | None:
    """Where on an axis values first reach a threshold, linear between points.

    Returns:
        None where they never do; the first point's place where they are there from the start.
    """
    for place, value in enumerate(values):
        if value >= threshold:
            if not place:
                return float(axis[0])
            share = (value - threshold) / (value - values[place - 1])
            return axis[place] - share * (axis[place] - axis[place - 1])
    return None


def last_crossing(axis: Sequence[float], values: Sequence[float], threshold: float) -> float | None:
    """Where on an axis values reach a threshold for good, likewise."""
    start = max((place for place, value in enumerate(values) if not value >= threshold), default=0)
    return first_crossing(axis[start:], values[start:], threshold)
