"""All numbers of the report, from the runs of a study."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megaqk.studies.common_timing import sharpness_threshold
from megaqk.studies.differing import differing_keys, software, uneven_arms
from megaqk.studies.measures import Measure, measures_of
from megaqk.studies.plots import plots_of
from megaqk.studies.series import Plot, tokens_to_reach
from megaqk.studies.statistics import Difference, Summary, difference, holm, summary
from megaqk.studies.study_runs import Run, StudyRuns, versus


@dataclass(frozen=True, kw_only=True)
class Reach:
    """When the runs of an arm are where the other arm's runs ended.

    Attributes:
        tokens: By seed; None where the loss is not reached.
        share: Tokens as a share of those of the other arm's run, likewise.
        saved: 1 - share, summarised over the pairs if all of them reach it; a mean without those that do not would
            be too good.
    """

    tokens: dict[int, float | None]
    share: dict[int, float | None]
    saved: Difference


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The report.

    Attributes:
        measures: Those that some run has.
        arms: Summaries, by measure and arm.
        differences: By measure and comparison.
        reach: Token efficiency, by comparison.
        plots: What is drawn.
        differing_keys: By key, the value of each arm.
        uneven_arms: Keys in which runs of one arm differ.
        software: By component and version, the runs that had it.
        sharpness_threshold: Of the timing index; None where there is none.
    """

    measures: list[Measure]
    arms: dict[str, dict[str, Summary]]
    differences: dict[str, dict[str, Difference]]
    reach: dict[str, Reach]
    plots: list[Plot]
    differing_keys: dict[str, dict[str, Any]]
    uneven_arms: dict[str, list[str]]
    software: dict[str, dict[str, list[str]]]
    sharpness_threshold: float | None


def compute(study: StudyRuns) -> Numbers:
    """Compute everything; runs without a final loss are left out, and pairs that lack one."""
    arms: dict[str, dict[str, Summary]] = {}
    differences: dict[str, dict[str, Difference]] = {}
    measures = list(measures_of(study))
    for measure in measures:
        values = {arm: [measure.value(run) for run in study.of(arm)] for arm in study.arms}
        found = {arm: summary([value for value in ones if value is not None]) for arm, ones in values.items()}
        if any(one.n for one in found.values()):
            arms[measure.key] = found
            differences[measure.key] = _differences(study, measure.value)
    return Numbers(
        measures=[measure for measure in measures if measure.key in arms],
        arms=arms,
        differences=differences,
        reach=_reach(study),
        plots=plots_of(study),
        differing_keys=differing_keys(study),
        uneven_arms=uneven_arms(study),
        software=software(study),
        sharpness_threshold=sharpness_threshold(study),
    )


def _differences(study: StudyRuns, value: Callable[[Run], float | None]) -> dict[str, Difference]:
    return _summarised({name: study.contrast(arms, value) for name, arms in study.contrasts.items()})


def _summarised(by_seed: Mapping[str, Mapping[int, float]]) -> dict[str, Difference]:
    """Summaries of comparisons, corrected for their number."""
    found = {name: difference(values, len(by_seed)) for name, values in by_seed.items()}
    corrected = holm([one.p for one in found.values()], len(found))
    return {name: replace(one, p_holm=p) for (name, one), p in zip(found.items(), corrected, strict=True)}


def _reach(study: StudyRuns) -> dict[str, Reach]:
    tokens: dict[str, dict[int, float | None]] = {}
    shares: dict[str, dict[int, float | None]] = {}
    for arm, against in study.comparisons:
        name = versus(arm, against)
        tokens[name], shares[name] = {}, {}
        for run, other in study.pairs(arm, against):
            assert other.loss is not None
            at = tokens_to_reach(run.validation, other.loss)
            tokens[name][run.seed] = at
            shares[name][run.seed] = None if at is None else at / max(other.validation)
    reached = {
        name: {seed: share for seed, share in ones.items() if share is not None} for name, ones in shares.items()
    }
    saved = _summarised(
        {
            name: {seed: 1 - share for seed, share in ones.items()} if len(ones) == len(shares[name]) else {}
            for name, ones in reached.items()
        }
    )
    return {name: Reach(tokens=tokens[name], share=ones, saved=saved[name]) for name, ones in shares.items()}
