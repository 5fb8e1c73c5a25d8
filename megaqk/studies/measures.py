"""One number a run: what tables and paired differences are made of."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megaqk.studies.common_timing import timing_values
from megaqk.studies.halves import HALVES, analysis_curve, mean_for, mean_of, numbers_in, pathwise_curve, probe_curve
from megaqk.studies.study_runs import RunRecord, StudyRuns


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
    value: Callable[[RunRecord], float | None]
    form: str = ".4g"


def _loss(run: RunRecord) -> float | None:
    return run.loss


def _perplexity(run: RunRecord) -> float | None:
    return None if run.loss is None else math.exp(min(run.loss, 700.0))


def _over_probes(name: str, half: str) -> Callable[[RunRecord], float | None]:
    return lambda run: mean_for(name)(list(probe_curve(run, name, half).values()))


def _accuracy(task: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.accuracy.get(task)


def _timing(name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: (run.analysis or {}).get("timing_index", {}).get(name)


def _total(name: str, half: str) -> Callable[[RunRecord], float | None]:
    def value(run: RunRecord) -> float | None:
        values = pathwise_curve(run, name, half).values()
        # A sum without some of its parts is none.
        return math.fsum(values) if run.analysis and 0 < len(values) == len(run.analysis["pathwise"]) else None

    return value


def _over_pathwise(name: str, half: str) -> Callable[[RunRecord], float | None]:
    return lambda run: mean_of(list(pathwise_curve(run, name, half).values()))


def _last_reliance(half: str) -> Callable[[RunRecord], float | None]:
    return lambda run: next(reversed(analysis_curve(run, "reliance_layer", half).values()), None)


def _early_heads(early: bool) -> Callable[[RunRecord], float | None]:
    """Reliance at the end on the upper heads that were sharp early, or on the others.

    Early are those at least as sharp as the median of the upper heads, at the last checkpoint in the first quarter;
    initial weights are no such checkpoint.
    """

    def value(run: RunRecord) -> float | None:
        analysis = run.analysis or {}
        if not analysis.get("reliance_head"):
            return None
        tokens = analysis["tokens"]
        at = max((index for index, count in enumerate(tokens) if 0 < count <= tokens[-1] / 4), default=None)
        if at is None:
            return None
        middle = (analysis["num_layers"] + 1) // 2
        entropies = list(numbers_in(analysis["attention_entropy"][at][middle:]))
        reliance = list(numbers_in(analysis["reliance_head"][-1][middle:]))
        bound = statistics.median(entropies)
        pairs = zip(entropies, reliance, strict=True)
        return mean_of([rise for entropy, rise in pairs if (entropy <= bound) == early])

    return value


def measures_of(study: StudyRuns) -> Iterator[Measure]:
    """All that a report has; timing takes its threshold from the study's baselines."""
    yield Measure(key="loss", section="loss", title="validation loss (nats per token)", value=_loss, form=".4f")
    yield Measure(key="perplexity", section="loss", title="perplexity", value=_perplexity, form=".3f")
    for task in dict.fromkeys(task for run in study.runs for task in run.accuracy):
        yield Measure(key=f"accuracy/{task}", section="downstream", title=task, value=_accuracy(task), form=".4f")
    for name, title in (
        ("attention_entropy", "entropy"),
        ("attention_write_energy", "attention write energy (geometric mean)"),
        ("ffn_write_energy", "FFN write energy (geometric mean)"),
    ):
        for half in HALVES:
            yield Measure(
                key=f"{name}/{half}", section="probes", title=f"{title}, {half}", value=_over_probes(name, half)
            )
    for key, title, value in timing_values(study):
        yield Measure(key=key, section="timing", title=f"{title} (tokens)", value=value, form=",.0f")
    for name, title in (
        ("tokens", "index"),
        ("upper_sharp_tokens", "upper layers sharp"),
        ("lower_stable_tokens", "lower layers stable"),
    ):
        yield Measure(
            key=f"own_timing/{name}", section="own_timing", title=f"{title} (tokens)", value=_timing(name), form=",.0f"
        )
    for half in HALVES:
        yield Measure(
            key=f"step_size_factor/{half}",
            section="pathwise",
            title=f"step-size factor, {half}",
            value=_total("step_size_factor", half),
        )
    for half in HALVES:
        yield Measure(
            key=f"residual_energy/{half}",
            section="pathwise",
            title=f"residual energy, {half}",
            value=_over_pathwise("residual_energy", half),
        )
    for name, title in (
        ("total", "RMS change of the logits"),
        ("share/weights", "share through the weights"),
        ("share/features", "share through the features"),
        ("share/interaction", "share of the interaction"),
    ):
        yield Measure(
            key=f"{name}/upper", section="growth", title=f"{title}, upper", value=_over_pathwise(name, "upper")
        )
    for half in HALVES:
        yield Measure(
            key=f"reliance/{half}", section="reliance", title=f"rise of the loss, {half}", value=_last_reliance(half)
        )

    for early, title in ((True, "upper heads that were sharp early"), (False, "other upper heads")):
        yield Measure(
            key=f"reliance/{'early' if early else 'late'}_heads",
            section="reliance",
            title=f"rise of the loss, {title}",
            value=_early_heads(early),
        )
