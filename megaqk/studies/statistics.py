"""Paired comparisons over seeds: intervals and p values, corrected for the number of comparisons."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 9999
BOOTSTRAP_SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Some values, one a seed; where a seed lacks its own, a mean of the others would be a choice of survivors.

    Attributes:
        by_seed: The values; None where a run does not have it.
        n: How many there are.
        mean: Of them; None where one is missing, or all.
        deviation: The standard deviation with n - 1; None below two values too.
    """

    by_seed: dict[int, float | None]
    n: int
    mean: float | None
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Difference(Summary):
    """Differences between two arms, one a seed that both have.

    Attributes:
        t_interval: mean ± t(1 - 0.05 / 2, n - 1) deviation / sqrt(n).
        bootstrap_interval: BCa with a fixed seed.
        simultaneous_interval: The t interval at level 1 - 0.05 / comparisons (Bonferroni).
        p: Of the two-sided t test of a mean of zero.
        p_holm: Corrected over the comparisons (Holm); None until `corrected` has filled it in.
    """

    t_interval: Interval | None = None
    bootstrap_interval: Interval | None = None
    simultaneous_interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None


def summary(by_seed: Mapping[int, float | None]) -> Summary:
    """Number, mean and deviation."""
    values = [value for value in by_seed.values() if value is not None]
    n, whole = len(values), len(values) == len(by_seed)
    return Summary(
        by_seed=dict(by_seed),
        n=n,
        mean=math.fsum(values) / n if n and whole else None,
        deviation=statistics.stdev(values) if n > 1 and whole else None,
    )


def difference(by_seed: Mapping[int, float | None], comparisons: int) -> Difference:
    """Summarise paired differences; below two pairs, or where one is missing, there is no interval.

    Args:
        by_seed: Value of the one arm minus that of the other, by seed.
        comparisons: How many the study makes.
    """
    # A second to import, for the report alone.
    from scipy import stats

    start = summary(by_seed)
    mean, deviation = start.mean, start.deviation
    if mean is None or deviation is None:
        return Difference(**vars(start))
    error = deviation / math.sqrt(start.n)
    # Runs that are alike to the last bit have no deviation.
    statistic = abs(mean) / error if error else math.inf if mean else 0.0
    return Difference(
        **vars(start),
        t_interval=t_interval(mean, deviation, start.n, LEVEL),
        bootstrap_interval=bootstrap_interval([value for value in by_seed.values() if value is not None]),
        simultaneous_interval=t_interval(mean, deviation, start.n, 1 - (1 - LEVEL) / comparisons),
        p=float(2 * stats.t.sf(statistic, start.n - 1)),
    )


def t_interval(mean: float, deviation: float, n: int, level: float) -> Interval:
    """The interval of Student's t for the mean of `n` values."""
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """The BCa bootstrap interval of the mean (Efron 1987), from 9999 resamples with a fixed seed.

    It never reaches beyond the smallest and largest value, and `resamples(n)` says how few means it is made of.
    """
    from scipy import stats

    if len(set(values)) == 1:  # BCa divides by the deviation
        return values[0], values[0]
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def resamples(n: int) -> int:
    """How many different resamples `n` values have, whatever their order."""
    return math.comb(2 * n - 1, n)


def holm(p_values: Sequence[float | None], comparisons: int) -> list[float | None]:
    """Correct p values for a number of comparisons (Holm 1979).

    Args:
        p_values: In any order; None, of a comparison that could not be made, stays.
        comparisons: How many there are, those included.
    """
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (comparisons - rank) * p))
        corrected[index] = highest
    return corrected
