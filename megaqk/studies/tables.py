"""Numbers as cells."""

from collections.abc import Mapping

from megaqk.studies.document import Table
from megaqk.studies.measures import Measure
from megaqk.studies.numbers import Numbers
from megaqk.studies.statistics import Difference, Interval, Summary

NONE = "–"  # noqa: RUF001


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none; what would look like zero and is not is written as 1.2e-07."""
    if value is None:
        return NONE
    text = format(value or 0.0, form)
    if not value or set(text) & set("123456789"):
        return text
    scientific = f"{'+' * form.startswith('+')}.1e"
    return f"{value * 100:{scientific}}%" if form.endswith("%") else format(value, scientific)


def interval(ends: Interval | None, form: str) -> str:
    """Both ends, signed."""
    return NONE if ends is None else f"[{number(ends[0], f'+{form}')}, {number(ends[1], f'+{form}')}]"


def probability(p: float | None) -> str:
    """A p value."""
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def spread(one: Summary, form: str) -> str:
    """Mean ± deviation; where some runs lack the value, of how many there is one."""
    deviation = "" if one.deviation is None else f" ± {number(one.deviation, form)}"
    return f"{number(one.mean, form)}{deviation}{_missing(one)}"


def arms_table(numbers: Numbers, section: str) -> Table:
    """Every measure of a section by arm."""
    measures = _of(numbers, section)
    runs = numbers.arms["loss"]
    rows = [
        [arm, str(all_runs.n), *(spread(numbers.arms[one.key][arm], one.form) for one in measures)]
        for arm, all_runs in runs.items()
    ]
    return Table(["arm", "runs", *(one.title for one in measures)], rows)


def differences_table(numbers: Numbers, section: str) -> Table:
    """Mean paired difference and t interval of every measure of a section."""
    measures = _of(numbers, section)
    rows = []
    for name, pairs in numbers.differences["loss"].items():
        found = [(numbers.differences[one.key][name], one.form) for one in measures]
        rows.append([name, str(pairs.n), *(_with_interval(one, form) for one, form in found)])
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


def _with_interval(one: Difference, form: str) -> str:
    ends = f" {interval(one.t_interval, form)}" if one.t_interval else ""
    return f"{number(one.mean, f'+{form}')}{ends}{_missing(one)}"


def _missing(one: Summary) -> str:
    return "" if one.n == len(one.by_seed) else f" ({one.n} of {len(one.by_seed)})"
