"""Whether the upper layers become sharp before the lower ones are stable."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megaqk.config.qk_timing import UPPER_HALF
from megaqk.config.root import Config
from megaqk.errors import UserError

STABILITY_THRESHOLD = 0.9
"""Of the lower layers' mean CKA with the reference; see docs/analysis.md."""


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
        sharpness: Of 1 - mean normalised entropy; None: half of the way from its first to its last value.
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
    sharp = thresholds.sharpness
    if sharp is None:
        # Halfway down is no sharpening.
        sharp = (sharpness[0] + sharpness[-1]) / 2 if sharpness[-1] > sharpness[0] else None
    places = {
        "upper_sharp": None if sharp is None else first_crossing(sharpness, sharp),
        "lower_stable": last_crossing(stability, thresholds.stability),
    }
    index: dict[str, Any] = {"sharpness_threshold": sharp, "stability_threshold": thresholds.stability}
    for unit, suffix, axis in (("steps", "step", steps), ("tokens", "tokens", tokens)):
        found = {name: None if place is None else _at(axis, place) for name, place in places.items()}
        index |= {f"{name}_{suffix}": at for name, at in found.items()}
        upper, lower = found["upper_sharp"], found["lower_stable"]
        index[unit] = None if upper is None or lower is None else upper - lower
    return index


def first_crossing(values: Sequence[float], threshold: float) -> float | None:
    """Where values first reach a threshold, as an index between which values are linear; None: nowhere."""
    for place, value in enumerate(values):
        if value >= threshold:
            return place - (value - threshold) / (value - values[place - 1]) if place else 0.0
    return None


def last_crossing(values: Sequence[float], threshold: float) -> float | None:
    """Where values reach a threshold for good, likewise."""
    below = [place for place, value in enumerate(values) if not value >= threshold]
    start = below[-1] if below else 0
    crossing = first_crossing(values[start:], threshold)
    return None if crossing is None else start + crossing


def _at(axis: Sequence[int], place: float) -> float:
    low = min(int(place), len(axis) - 2) if len(axis) > 1 else 0
    return axis[low] + (place - low) * (axis[min(low + 1, len(axis) - 1)] - axis[low])
