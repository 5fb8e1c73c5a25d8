"""One number a run: what tables and paired differences are made of."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaqk.studies.study_runs import Run

HALVES = ("lower", "upper")
"""Layers below L/2, and from there on: the same for all arms, whatever layers their rules are for."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of a run.

    Attributes:
        key: Its name in `report.json`.
        section: Of the report.
        title: With its unit.
        value: Takes it from a run; None where the run does not have it.
        form: How it is written.
    """

    key: str
    section: str
    title: str
    value: Callable[[Run], float | None]
    form: str = ".4f"


def half_mean(by_layer: Sequence[Any], half: str) -> float | None:
    """The mean over a half of the layers, and over heads where there are any; what is null is left out.

    Args:
        by_layer: (layers,) or (layers, heads).
        half: One of `HALVES`.
    """
    middle = (len(by_layer) + 1) // 2
    return mean_of(by_layer[middle:] if half == "upper" else by_layer[:middle])


def mean_of(values: Any) -> float | None:
    """The mean over every number in nested lists."""
    numbers = list(_numbers(values))
    return math.fsum(numbers) / len(numbers) if numbers else None


def probe_curve(run: Run, name: str, half: str) -> dict[int, float]:
    """A probe's mean over half of the layers, by tokens."""
    points = ((record["tokens"], half_mean(record.get(name) or [], half)) for record in run.probes)
    return {tokens: value for tokens, value in points if value is not None}


def analysis_curve(run: Run, name: str, half: str) -> dict[int, float]:
    """The same of a quantity by checkpoint."""
    analysis = run.analysis or {}
    points = zip(analysis.get("tokens", []), analysis.get(name, []), strict=False)
    means = ((tokens, half_mean(values or [], half)) for tokens, values in points)
    return {tokens: value for tokens, value in means if value is not None}


def pathwise_curve(run: Run, name: str, half: str) -> dict[int, float]:
    """The same of a quantity between two checkpoints, at the later one's tokens."""
    analysis = run.analysis or {}
    tokens = dict(zip(analysis.get("steps", []), analysis.get("tokens", []), strict=False))
    means = ((tokens[part["to"]], half_mean(part.get(name) or [], half)) for part in analysis.get("pathwise", []))
    return {at: value for at, value in means if value is not None}


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value)
    elif values is not None:
        yield values


def _loss(run: Run) -> float | None:
    return run.loss


def _perplexity(run: Run) -> float | None:
    return None if run.loss is None else math.exp(min(run.loss, 700.0))


def _over_probes(name: str, half: str) -> Callable[[Run], float | None]:
    return lambda run: mean_of(list(probe_curve(run, name, half).values()))


def _timing(name: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        timing: Mapping[str, float | None] = (run.analysis or {}).get("timing_index") or {}
        return timing.get(name)

    return value


def _total(name: str, half: str) -> Callable[[Run], float | None]:
    return lambda run: math.fsum(values) if (values := pathwise_curve(run, name, half).values()) else None


def _over_pathwise(name: str, half: str) -> Callable[[Run], float | None]:
    return lambda run: mean_of(list(pathwise_curve(run, name, half).values()))


def _last_reliance(half: str) -> Callable[[Run], float | None]:
    return lambda run: next(reversed(analysis_curve(run, "reliance_layer", half).values()), None)


def _measures() -> Iterator[Measure]:
    yield Measure(key="loss", section="loss", title="validation loss (nats per token)", value=_loss)
    yield Measure(key="perplexity", section="loss", title="perplexity", value=_perplexity, form=".3f")
    for name, title in (
        ("attention_entropy", "entropy"),
        ("attention_write_energy", "attention write energy"),
        ("ffn_write_energy", "FFN write energy"),
    ):
        for half in HALVES:
            yield Measure(
                key=f"{name}/{half}", section="probes", title=f"{title}, {half}", value=_over_probes(name, half)
            )
    yield Measure(key="timing_index", section="timing", title="index (steps)", value=_timing("steps"), form=",.0f")
    for half, name in (("upper", "upper_sharp_step"), ("lower", "lower_stable_step")):
        title = f"{half} layers {'sharp' if half == 'upper' else 'stable'} (step)"
        yield Measure(key=name, section="timing", title=title, value=_timing(name), form=",.0f")
    for half in HALVES:
        yield Measure(
            key=f"step_size_factor/{half}",
            section="pathwise",
            title=f"step-size factor, {half}",
            value=_total("step_size_factor", half),
        )
        yield Measure(
            key=f"residual_energy/{half}",
            section="pathwise",
            title=f"residual energy, {half}",
            value=_over_pathwise("residual_energy", half),
        )
    for name, title in (
        ("total", "RMS change of the logits"),
        ("share_weights", "share through the weights"),
        ("share_features", "share through the features"),
        ("share_interaction", "share of the interaction"),
    ):
        yield Measure(
            key=f"{name}/upper", section="growth", title=f"{title}, upper", value=_over_pathwise(name, "upper")
        )
    for half in HALVES:
        yield Measure(
            key=f"reliance/{half}", section="reliance", title=f"rise of the loss, {half}", value=_last_reliance(half)
        )


MEASURES = tuple(_measures())
