"""Quantities by layer and head as means over half of the layers."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megaqk.studies.study_runs import RunRecord

HALVES = ("lower", "upper")
"""Layers below L/2, and from there on: the same for all arms, whatever layers their rules are for."""


def mean_of(values: Any) -> float | None:
    """The mean over every number in nested lists; what is null is left out."""
    numbers = list(numbers_in(values))
    return math.fsum(numbers) / len(numbers) if numbers else None


def geometric_mean_of(values: Any) -> float | None:
    """The geometric mean likewise; there is none where one of them is zero."""
    numbers = list(numbers_in(values))
    return math.exp(math.fsum(map(math.log, numbers)) / len(numbers)) if numbers and min(numbers) > 0 else None


Mean = Callable[[Any], float | None]


def half_mean(by_layer: Sequence[Any], half: str, mean: Mean = mean_of) -> float | None:
    """The mean over a half of the layers, and over heads where there are any.

    Args:
        by_layer: (layers,) or (layers, heads).
        half: One of `HALVES`.
        mean: Which.
    """
    middle = (len(by_layer) + 1) // 2
    return mean(by_layer[middle:] if half == "upper" else by_layer[:middle])


def mean_for(name: str) -> Mean:
    """How a probe is averaged: ratios geometrically, or the first layer with its small stream would outweigh all."""
    return geometric_mean_of if name.endswith("_write_energy") else mean_of


def probe_curve(run: RunRecord, name: str, half: str) -> dict[int, float]:
    """A probe's mean over half of the layers, by tokens."""
    points = ((record["tokens"], half_mean(record.get(name) or [], half, mean_for(name))) for record in run.probes)
    return {tokens: value for tokens, value in points if value is not None}


def analysis_curve(run: RunRecord, name: str, half: str) -> dict[int, float]:
    """The same of a quantity by checkpoint."""
    analysis = run.analysis or {}
    points = zip(analysis.get("tokens", []), analysis.get(name, []), strict=False)
    means = ((tokens, half_mean(values or [], half)) for tokens, values in points)
    return {tokens: value for tokens, value in means if value is not None}


def pathwise_curve(run: RunRecord, name: str, half: str) -> dict[int, float]:
    """The same of a quantity between two checkpoints, at the later one's tokens; of `share`, the part after a slash."""
    analysis = run.analysis or {}
    tokens = dict(zip(analysis.get("steps", []), analysis.get("tokens", []), strict=False))
    quantity, _, part = name.partition("/")
    found = {}
    for pair in analysis.get("pathwise", []):
        by_layer = pair[quantity][part] if part else pair[quantity]
        if isinstance(by_layer, dict):  # of query and key
            by_layer = list(zip(*by_layer.values(), strict=True))
        if (value := half_mean(by_layer, half)) is not None:
            found[tokens[pair["to"]]] = value
    return found


def sharpness_curve(run: RunRecord) -> dict[int, float]:
    """1 - normalised entropy of the upper layers, by checkpoint."""
    return {tokens: 1 - value for tokens, value in analysis_curve(run, "attention_entropy", "upper").items()}


def numbers_in(values: Any) -> Iterator[float]:
    """Every number in nested lists; nulls are left out."""
    if isinstance(values, list | tuple):
        for value in values:
            yield from numbers_in(value)
    elif values is not None:
        yield values
