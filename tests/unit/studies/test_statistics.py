import math

import numpy as np
import pytest
from scipy import stats

from megaqk.studies.statistics import difference, holm, resamples, summary, t_interval
from megaqk.studies.tables import number

ONE = [3.10, 3.05, 3.22, 2.98, 3.17, 3.11]
OTHER = [3.15, 3.02, 3.31, 3.01, 3.30, 3.12]
PAIRS = {seed: one - other for seed, (one, other) in enumerate(zip(ONE, OTHER, strict=True))}


def test_the_intervals_are_those_of_scipy() -> None:
    found = difference(PAIRS, 4)
    test = stats.ttest_rel(ONE, OTHER)
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    assert found.t_interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)
    assert found.simultaneous_interval == pytest.approx(tuple(test.confidence_interval(1 - 0.05 / 4)), rel=1e-9)
    bootstrap = stats.bootstrap(
        (ONE, OTHER),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        paired=True,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    assert found.bootstrap_interval == pytest.approx(tuple(bootstrap.confidence_interval), rel=1e-9)


def test_three_pairs_worked_by_hand() -> None:
    found = difference({1: -0.1, 2: -0.2, 3: -0.3}, 2)
    assert (found.n, found.mean, found.deviation) == (3, pytest.approx(-0.2), pytest.approx(0.1))
    # With two degrees of freedom the distribution has a closed form.
    quantile, wider = (math.sqrt(2 / (alpha * (2 - alpha)) - 2) for alpha in (0.05, 0.025))
    error = 0.1 / math.sqrt(3)
    assert found.t_interval == pytest.approx((-0.2 - quantile * error, -0.2 + quantile * error))
    assert found.simultaneous_interval == pytest.approx((-0.2 - wider * error, -0.2 + wider * error))
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_the_bootstrap_of_two_pairs_worked_by_hand() -> None:
    # Means of 0, 1/2 and 1 with weights 1/4, 1/2, 1/4.
    assert difference({1: 0.0, 2: 1.0}, 1).bootstrap_interval == (0.0, 1.0)
    assert (resamples(2), resamples(5)) == (3, 126)


def test_runs_that_are_alike_have_no_difference() -> None:
    found = difference({1: 0.0, 2: 0.0}, 1)
    assert (found.p, found.t_interval, found.bootstrap_interval) == (1.0, (0.0, 0.0), (0.0, 0.0))
    assert difference({1: 0.5, 2: 0.5}, 1).p == 0.0


@pytest.mark.parametrize("pairs", [{}, {4: 0.25}])
def test_one_pair_has_no_interval(pairs: dict[int, float]) -> None:
    found = difference(pairs, 1)
    assert (found.n, found.mean) == (len(pairs), 0.25 if pairs else None)
    assert (found.t_interval, found.bootstrap_interval, found.p, found.deviation) == (None,) * 4


def test_the_mean_of_those_that_are_left_is_none() -> None:
    found = difference({1: 1.0, 2: None, 3: 3.0}, 1)
    assert (found.n, found.by_seed) == (2, {1: 1.0, 2: None, 3: 3.0})
    assert (found.mean, found.deviation, found.t_interval, found.p) == (None,) * 4


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (-0.00001, "+.4f", "-1.0e-05"),
        (0.00002, "+.4f", "+2.0e-05"),
        (-0.0, "+.4f", "+0.0000"),
        (0.3, ",.0f", "3.0e-01"),
        (0.00012, "+.1%", "+1.2e-02%"),
        (0.0001, ".4f", "0.0001"),
    ],
)
def test_what_is_not_zero_does_not_look_like_it(value: float, form: str, text: str) -> None:
    assert number(value, form) == text


def test_holm_worked_by_hand() -> None:
    # 4 x 0.01; 3 x 0.02, and not below the one before; 2 x 0.04, the last as it is but not below; one is missing.
    assert holm([0.04, 0.01, None, 0.02, 0.05], 5) == pytest.approx([0.12, 0.05, None, 0.08, 0.12])
    assert holm([0.9, 0.8], 2) == [1.0, 1.0]


def test_a_summary_has_the_deviation_of_a_sample() -> None:
    found = summary({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    assert (found.n, found.mean, found.deviation) == (4, 2.5, pytest.approx(math.sqrt(5 / 3)))
    # Equal values have none, not even from rounding.
    assert summary(dict.fromkeys((1, 2, 3), 0.05144)).deviation == 0.0
    assert t_interval(0.0, 1.0, 1000, 0.95) == pytest.approx((-0.06205, 0.06205), abs=1e-5)
