"""An analysis for a terminal."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from megaqk.runtime.text_table import table


def summary(analysis: dict[str, Any]) -> str:
    """The most telling numbers of `analysis.json`: by step, by change, and the timing index."""
    upper, lower = analysis["upper"], analysis["lower"]
    paragraphs = [f"Upper layers {_range(upper)}, lower layers {_range(lower)}\n{_steps(analysis)}"]
    if analysis["pathwise"]:
        titles = "Change of the upper layers' logits: root mean square, shares of its parts, and the two factors"
        paragraphs.append(f"{titles}\n{_changes(analysis['pathwise'], upper)}")
    else:
        paragraphs.append("One checkpoint: the pathwise decomposition needs two (checkpoint.keep_every, or --initial)")
    index = analysis["timing_index"]
    sharp, stable, difference = (
        "never" if index[name] is None else f"{index[name]:,.0f}"
        for name in ("upper_sharp_step", "lower_stable_step", "steps")
    )
    paragraphs.append(f"Upper layers sharp at step {sharp}, lower layers stable at step {stable}: index {difference}")
    return "\n\n".join(paragraphs)


def _steps(analysis: dict[str, Any]) -> str:
    rows = [
        (
            "step",
            "loss",
            "sharpness upper",
            "lower",
            "CKA upper",
            "lower",
            "reliance upper",
            "lower",
            "attention write",
            "FFN write",
        )
    ]
    for index, step in enumerate(analysis["steps"]):
        groups = [analysis[name][group][index] for name in ("sharpness", "stability") for group in ("upper", "lower")]
        groups += [_mean(analysis["reliance_layer"][index], analysis[group]) for group in ("upper", "lower")]
        writes = (_mean(analysis[f"{kind}_write_energy"][index]) for kind in ("attention", "ffn"))
        cells = (analysis["loss"][index], *groups, *writes)
        rows.append((f"{step}", *map(_cell, cells)))  # type: ignore[arg-type]
    return table(rows)


def _changes(pathwise: Sequence[dict[str, Any]], upper: Sequence[int]) -> str:
    rows = [("steps", "change", "weights", "features", "interaction", "sum of lr x m", "residual energy")]
    for one in pathwise:
        cells = [_mean(one["total"], upper)]
        cells += [_mean(one["share"][part], upper) for part in ("weights", "features", "interaction")]
        factors = one["step_size_factor"]
        cells += [_mean(factors["query"] + factors["key"], [*upper, *(len(factors["query"]) + u for u in upper)])]
        cells += [_mean(one["residual_energy"], upper)]
        rows.append((f"{one['from']}-{one['to']}", *map(_cell, cells)))  # type: ignore[arg-type]
    return table(rows)


def _mean(values: Sequence[float | None], layers: Sequence[int] | None = None) -> float | None:
    chosen = values if layers is None else [values[layer] for layer in layers]
    numbers = [value for value in chosen if value is not None]
    return fmean(numbers) if len(numbers) == len(chosen) else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _range(layers: Sequence[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
