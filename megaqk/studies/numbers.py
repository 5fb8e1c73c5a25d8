"""All numbers of the report, from the runs of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megaqk.studies.common_timing import sharpness_threshold
from megaqk.studies.differing import arm_differences, data_differences, software, uneven_analyses, uneven_arms
from megaqk.studies.measures import Measure, measures_of
from megaqk.studies.plots import plots_of
from megaqk.studies.series import Plot, tokens_to_reach
from megaqk.studies.statistics import Difference, Summary, difference, holm, summary
from megaqk.studies.study_runs import StudyRuns, versus


@dataclass(frozen=True, kw_only=True)
class Reach:
    """When the runs of an arm are where the other arm's runs ended.

    Attributes:
        tokens: By seed; None where the loss is not reached.
        share: Tokens as a share of those of the other arm's run, likewise.
        saved: 1 - share, summarised.
    """

    tokens: dict[int, float | None]
    share: dict[int, float | None]
    saved: Difference


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The report.

    Attributes:
        measures: Those of sections of which some run has a number.
        arms: Summaries, by measure and arm.
        differences: By measure and comparison.
        reach: Token efficiency, by comparison.
        plots: What is drawn.
        differing_keys: By key, the value of each arm.
        data_differences: Keys by which runs of one seed learn from other samples.
        uneven_arms: Keys in which runs of one arm differ.
        uneven_analyses: By setting, the runs whose analysis has another one than that of the first.
        software: By component and version, the runs that had it.
        sharpness_threshold: Of the timing index; None where there is none.
    """

    measures: list[Measure]
    arms: dict[str, dict[str, Summary]]
    differences: dict[str, dict[str, Difference]]
    reach: dict[str, Reach]
    plots: list[Plot]
    differing_keys: dict[str, dict[str, Any]]
    data_differences: list[str]
    uneven_arms: dict[str, list[str]]
    uneven_analyses: dict[str, list[str]]
    software: dict[str, dict[str, list[str]]]
    sharpness_threshold: float | None


def compute(study: StudyRuns) -> Numbers:
    """Compute everything; runs without a final loss are left out, and pairs that lack one."""
    arms: dict[str, dict[str, Summary]] = {}
    differences: dict[str, dict[str, Difference]] = {}
    measures = list(measures_of(study))
    for measure in measures:
        arms[measure.key] = {
            arm: summary({run.seed: measure.value(run) for run in study.of(arm)}) for arm in study.arms
        }
        differences[measure.key] = _summarised(
            {name: study.contrast(of, measure.value) for name, of in study.contrasts.items()}
        )
    # With one of its numbers somewhere a section has them all: that no run has one is a result.
    there = {one.section for one in measures if any(summary.n for summary in arms[one.key].values())}
    measures = [one for one in measures if one.section in there]
    return Numbers(
        measures=measures,
        arms={one.key: arms[one.key] for one in measures},
        differences={one.key: differences[one.key] for one in measures},
        reach=_reach(study),
        plots=plots_of(study),
        differing_keys=arm_differences(study),
        data_differences=data_differences(study),
        uneven_arms=uneven_arms(study),
        uneven_analyses=uneven_analyses(study),
        software=software(study),
        sharpness_threshold=sharpness_threshold(study),
    )


def _summarised(by_seed: Mapping[str, Mapping[int, float | None]]) -> dict[str, Difference]:
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
    saved = _summarised(
        {
            name: {seed: None if share is None else 1 - share for seed, share in ones.items()}
            for name, ones in shares.items()
        }
    )
    return {name: Reach(tokens=tokens[name], share=ones, saved=saved[name]) for name, ones in shares.items()}
