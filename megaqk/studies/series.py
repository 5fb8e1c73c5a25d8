"""What is drawn: bands over seeds against tokens or layers, in panels."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from megaqk.analysis.timing_index import first_crossing
from megaqk.studies.statistics import LEVEL, t_interval
from megaqk.studies.study_runs import Curve, RunRecord, StudyRuns, versus

_BINS = 100

Points = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A mean with a band around it, where every one of its runs has a value.

    Attributes:
        n: How many runs.
        x: Tokens, or layers.
        mean: Over the runs.
        low: Lower edge, the mean itself for one run.
        high: Upper edge.
    """

    n: int
    x: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        y: What is measured, with its unit.
        bands: By arm or comparison.
        zoomed: Whether the axis leaves out how far the first tenth of x reaches up.
        log: Whether the axis is logarithmic.
    """

    title: str
    y: str
    bands: dict[str, Band]
    zoomed: bool = False
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure.

    Attributes:
        name: Of its files.
        title: Above it.
        caption: What it shows, how the bands are made.
        x: What the panels are drawn against.
        panels: In order.
    """

    name: str
    title: str
    caption: str
    x: str
    panels: list[Panel]


def deviation_band(curves: Sequence[Points]) -> Band:
    """The mean, and one standard deviation over seeds on both sides."""
    return _band(curves, lambda mean, deviation: (mean - deviation, mean + deviation))


def log_band(curves: Sequence[Points]) -> Band:
    """The geometric mean, and one standard deviation of the logarithms on both sides."""
    band = deviation_band([{x: math.log(value) for x, value in curve.items()} for curve in curves])
    mean, low, high = (list(map(math.exp, edge)) for edge in (band.mean, band.low, band.high))
    return Band(n=band.n, x=band.x, mean=mean, low=low, high=high)


def t_band(curves: Sequence[Points]) -> Band:
    """The mean, and its 95 % t interval at each point by itself."""
    return _band(curves, lambda mean, deviation: t_interval(mean, deviation, len(curves), LEVEL))


def by_arm(
    study: StudyRuns,
    curve: Callable[[RunRecord], Points | None],
    band_of: Callable[[Sequence[Points]], Band] = deviation_band,
) -> dict[str, Band]:
    """Bands of the arms whose finished runs have all got the curve."""
    found = {arm: [curve(run) for run in study.of(arm)] for arm in study.arms}
    bands = {
        arm: band_of([points for points in curves if points]) for arm, curves in found.items() if curves and all(curves)
    }
    return {arm: band for arm, band in bands.items() if band.x}


def by_comparison(study: StudyRuns, curve: Callable[[RunRecord], Points]) -> dict[str, Band]:
    """Bands of the paired differences, from t intervals, for comparisons with at least two pairs."""
    bands = {}
    for arm, against in study.comparisons:
        pairs = [(curve(run), curve(other)) for run, other in study.pairs(arm, against)]
        if len(pairs) > 1:
            bands[versus(arm, against)] = t_band(
                [{x: one[x] - other[x] for x in one if x in other} for one, other in pairs]
            )
    return {name: band for name, band in bands.items() if band.x}


def binned(curve: Curve) -> Curve:
    """A curve of at most a hundred points, each the mean over as many records as the others, at its last."""
    width = math.ceil(len(curve) / _BINS)
    points = list(curve.items())
    groups = [points[first : first + width] for first in range(0, len(points), width or 1)]
    return {group[-1][0]: math.fsum(value for _, value in group) / len(group) for group in groups}


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Tokens at which a validation curve first is at a loss or below; linear between evaluations.

    Returns:
        None where it never is; the first evaluation's tokens where it is there from the start.
    """
    return first_crossing(list(curve), [-value for value in curve.values()], -loss)


def _band(curves: Sequence[Points], edges: Callable[[float, float], tuple[float, float]]) -> Band:
    x = _common(curves)
    columns = [[curve[point] for curve in curves] for point in x]
    means = [math.fsum(column) / len(column) for column in columns]
    if len(curves) > 1:
        spread = [statistics.stdev(column) for column in columns]
        sides = [edges(mean, deviation) for mean, deviation in zip(means, spread, strict=True)]
    else:
        sides = [(mean, mean) for mean in means]
    return Band(n=len(curves), x=x, mean=means, low=[low for low, _ in sides], high=[high for _, high in sides])


def _common(curves: Iterable[Points]) -> list[int]:
    return sorted(set.intersection(*(set(curve) for curve in curves)))
