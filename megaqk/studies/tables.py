"""Numbers as cells."""

from collections.abc import Mapping

from megaqk.studies.document import Table
from megaqk.studies.measures import Measure
from megaqk.studies.numbers import Numbers
from megaqk.studies.statistics import Difference, Interval, Summary

NONE = "–"  # noqa: RUF001


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else format(value, form)


def interval(ends: Interval | None, form: str) -> str:
    """Both ends, signed."""
    return NONE if ends is None else f"[{ends[0]:+{form}}, {ends[1]:+{form}}]"


def probability(p: float | None) -> str:
    """A p value."""
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def spread(one: Summary, form: str, of: int) -> str:
    """Mean ± deviation, and of how many where some lack the value."""
    if one.mean is None:
        return NONE
    deviation = "" if one.deviation is None else f" ± {one.deviation:{form}}"
    return f"{one.mean:{form}}{deviation}{'' if one.n == of else f' ({one.n} of {of})'}"


def arms_table(numbers: Numbers, section: str) -> Table:
    """Every measure of a section by arm."""
    measures = _of(numbers, section)
    runs = numbers.arms["loss"]
    rows = [
        [arm, str(all_runs.n), *(spread(numbers.arms[one.key][arm], one.form, all_runs.n) for one in measures)]
        for arm, all_runs in runs.items()
    ]
    return Table(["arm", "runs", *(one.title for one in measures)], rows)


def differences_table(numbers: Numbers, section: str) -> Table:
    """Mean paired difference and t interval of every measure of a section."""
    measures = _of(numbers, section)
    rows = []
    for name, pairs in numbers.differences["loss"].items():
        found = [(numbers.differences[one.key][name], one.form) for one in measures]
        rows.append([name, str(pairs.n), *(_with_interval(one, form, pairs.n) for one, form in found)])
    return Table(["comparison", "pairs", *(one.title for one in measures)], rows)


def full_table(differences: Mapping[str, Difference], form: str) -> Table:
    """Everything that is computed of paired differences."""
    rows = [
        [
            name,
            str(one.n),
            number(one.mean, f"+{form}"),
            number(one.deviation, form),
            interval(one.t_interval, form),
            interval(one.bootstrap_interval, form),
            interval(one.simultaneous_interval, form),
            probability(one.p),
            probability(one.p_holm),
        ]
        for name, one in differences.items()
    ]
    head = ["mean", "deviation", "95 % t", "95 % bootstrap", "simultaneous 95 % t", "p", "p (Holm)"]
    return Table(["comparison", "pairs", *head], rows)


def _of(numbers: Numbers, section: str) -> list[Measure]:
    return [measure for measure in numbers.measures if measure.section == section]


def _with_interval(one: Difference, form: str, of: int) -> str:
    missing = "" if one.n == of else f" ({one.n} of {of})"
    if one.mean is None:
        return f"{NONE}{missing}"
    ends = f" {interval(one.t_interval, form)}" if one.t_interval else ""
    return f"{one.mean:+{form}}{ends}{missing}"
