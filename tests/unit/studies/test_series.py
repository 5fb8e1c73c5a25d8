import pytest

from megaqk.studies.halves import geometric_mean_of, half_mean
from megaqk.studies.series import binned, deviation_band, log_band, t_band, tokens_to_reach

CURVE = {100: 5.0, 200: 4.0, 300: 3.0, 400: 3.5}


@pytest.mark.parametrize(("loss", "tokens"), [(3.5, 250.0), (4.0, 200.0), (5.5, 100.0), (2.9, None)])
def test_tokens_to_reach_a_loss(loss: float, tokens: float | None) -> None:
    assert tokens_to_reach(CURVE, loss) == tokens


def test_bands_are_where_all_runs_are() -> None:
    curves = [{1: 1.0, 2: 2.0, 3: 5.0}, {1: 3.0, 2: 2.0}]
    band = deviation_band(curves)
    assert (band.n, band.x, band.mean) == (2, [1, 2], [2.0, 2.0])
    assert (band.low, band.high) == (pytest.approx([2 - 2**0.5, 2]), pytest.approx([2 + 2**0.5, 2]))
    # t(0.975, 1) is 12.7062.
    assert t_band(curves).high == pytest.approx([2 + 12.7062, 2], rel=1e-5)
    assert deviation_band(curves[:1]).low == [1.0, 2.0, 5.0]


def test_bands_of_logarithms_stay_above_zero() -> None:
    band = log_band([{1: 1.0}, {1: 100.0}])
    assert band.mean == pytest.approx([10.0])
    # A deviation of log(100) / sqrt(2).
    assert (band.low, band.high) == (pytest.approx([10 / 100**0.5**0.5]), pytest.approx([10 * 100**0.5**0.5]))


def test_a_geometric_mean() -> None:
    assert half_mean([1.0, 100.0, 2.0, 8.0], "upper", geometric_mean_of) == pytest.approx(4.0)
    assert (geometric_mean_of([[4.0, None], 9.0]), geometric_mean_of([0.0, 1.0])) == (pytest.approx(6.0), None)


def test_a_long_curve_is_drawn_as_means_of_stretches() -> None:
    found = binned({10 * step: float(step) for step in range(1, 251)})
    assert list(found.items())[:2] == [(30, 2.0), (60, 5.0)]
    assert len(found) == 84
    assert binned({}) == {}


def test_the_middle_layer_of_an_odd_number_is_a_lower_one() -> None:
    assert (half_mean([1, 2, 9], "lower"), half_mean([1, 2, 9], "upper")) == (1.5, 9)
    assert half_mean([[1.0], [None, 3.0]], "upper") == 3.0
    assert half_mean([[1.0], [None]], "upper") is None
