"""The timing index by one measure for all arms of a study.

Each run's own analysis may have a threshold of its own, half of the way that its own sharpness goes, and layers of its
own: an arm that sharpens late is then held to another standard than the baseline.
"""

from collections.abc import Callable, Iterator

from megaqk.analysis.timing_index import STABILITY_THRESHOLD, first_crossing, half_way, last_crossing
from megaqk.studies.halves import analysis_curve, mean_of, sharpness_curve
from megaqk.studies.study_runs import Curve, RunRecord, StudyRuns


def sharpness_threshold(study: StudyRuns) -> float | None:
    """Half of the way from the first to the last sharpness of the upper layers, means over the baselines' runs.

    Baselines are the arms that others are compared against.

    Returns:
        None where there is no analysis, or the baselines have hardly become sharper.
    """
    arms = {against for _, against in study.comparisons}
    curves = [list(sharpness_curve(run).values()) for arm in study.arms if arm in arms for run in study.of(arm)]
    first, last = (mean_of([curve[end] for curve in curves if curve]) for end in (0, -1))
    return None if first is None or last is None else half_way(first, last)


def timing_values(study: StudyRuns) -> Iterator[tuple[str, str, Callable[[RunRecord], float | None]]]:
    """Key, title and value, in tokens, of what the timing index is made of, and of the index itself."""
    threshold = sharpness_threshold(study)

    def sharp(run: RunRecord) -> float | None:
        return None if threshold is None else first_crossing(*_points(sharpness_curve(run)), threshold)

    def stable(run: RunRecord) -> float | None:
        return last_crossing(*_points(analysis_curve(run, "stability_cka", "lower")), STABILITY_THRESHOLD)

    def index(run: RunRecord) -> float | None:
        at, other = sharp(run), stable(run)
        return None if at is None or other is None else at - other

    yield "timing_index", "timing index", index
    yield "upper_sharp", "upper layers sharp", sharp
    yield "lower_stable", "lower layers stable", stable


def _points(curve: Curve) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())
