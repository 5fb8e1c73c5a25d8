"""The timing index by one measure for all arms of a study.

Each run's own analysis may have a threshold of its own, half of the way that its own sharpness goes, and layers of its
own: an arm that sharpens late is then held to another standard than the baseline.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from megaqk.studies.halves import analysis_curve, mean_of, sharpness_curve
from megaqk.studies.series import tokens_to_reach
from megaqk.studies.study_runs import Curve, Run, StudyRuns

STABILITY_THRESHOLD = 0.9


def sharpness_threshold(study: StudyRuns) -> float | None:
    """Half of the way from the first to the last sharpness of the upper layers, means over the baselines' runs.

    Baselines are the arms that others are compared against.

    Returns:
        None where there is no analysis, or the baselines have not become sharper.
    """
    arms = {against for _, against in study.comparisons}
    curves = [list(sharpness_curve(run).values()) for arm in study.arms if arm in arms for run in study.of(arm)]
    first, last = (mean_of([curve[end] for curve in curves if curve]) for end in (0, -1))
    return (first + last) / 2 if first is not None and last is not None and last > first else None


def timing_values(study: StudyRuns) -> Iterator[tuple[str, str, Callable[[Run], float | None]]]:
    """Key, title and value, in tokens, of what the timing index is made of, and of the index itself."""
    threshold = sharpness_threshold(study)

    def sharp(run: Run) -> float | None:
        if threshold is None:
            return None
        return tokens_to_reach({tokens: -value for tokens, value in sharpness_curve(run).items()}, -threshold)

    def stable(run: Run) -> float | None:
        return tokens_to_stay(analysis_curve(run, "stability_cka", "lower"), STABILITY_THRESHOLD)

    def index(run: Run) -> float | None:
        at, other = sharp(run), stable(run)
        return None if at is None or other is None else at - other

    yield "timing_index", "timing index", index
    yield "upper_sharp", "upper layers sharp", sharp
    yield "lower_stable", "lower layers stable", stable


def tokens_to_stay(curve: Curve, threshold: float) -> float | None:
    """Tokens from which on a curve is at a threshold or above; linear between points.

    Returns:
        None where it ends below; the first point's tokens where it is never below.
    """
    points = sorted(curve.items())
    if not points or points[-1][1] < threshold:
        return None
    for (tokens, value), (later, higher) in reversed(list(pairwise(points))):
        if value < threshold:
            return tokens + (later - tokens) * (threshold - value) / (higher - value)
    return float(points[0][0])
