from fractions import Fraction

import numpy as np
import pytest

from megaqk.data.pattern import Pattern


def deviations(weights: list[int], num_samples: int) -> np.ndarray:
    """Count by hand how far each source is from its share after each sample, in units of 1 / sum(weights)."""
    sources, ranks = Pattern(weights).locate(np.arange(num_samples))
    drawn = np.eye(len(weights), dtype=np.int64)[sources]
    before = np.cumsum(drawn, axis=0) - drawn
    assert np.array_equal(ranks, before[np.arange(num_samples), sources])
    return np.cumsum(drawn, axis=0) * sum(weights) - np.outer(np.arange(1, num_samples + 1), weights)


@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1], [7, 3], [1, 99], [7, 2, 1], [1, 1, 1, 1], [5, 0, 3], [31, 17, 11, 7, 5, 3, 2, 1], list(range(1, 40))],
)
def test_every_prefix_is_within_its_bound(weights: list[int]) -> None:
    total, active = sum(weights), sum(weight > 0 for weight in weights)
    off = deviations(weights, 3 * total)
    bound = {1: 0.0, 2: 0.5, 3: 1.0}.get(active, 1.68)
    assert np.abs(off).max() / total <= bound
    # A whole period, and so any number of them, is exact.
    assert not off[total - 1 :: total].any()


@pytest.mark.parametrize("weights", [[1, 1], [7, 3], [1, 99], [377, 610]])
def test_any_window_of_two_sources_is_within_one_sample(weights: list[int]) -> None:
    off = deviations(weights, 3 * sum(weights))
    assert off.max() - off.min() <= sum(weights)


def any_window(weights: list[float], begin: int, end: int) -> Fraction:
    """How far the worst source is from its share in the worst window inside [begin, end), exactly."""
    scale = 10**10
    whole = [int(Fraction(repr(weight)) * scale) for weight in weights]
    sources, _ = Pattern(weights).locate(np.arange(begin, end))
    worst = Fraction(0)
    for source, weight in enumerate(whole):
        drawn = np.concatenate([[0], np.cumsum(sources == source)])
        off = drawn * sum(whole) - np.arange(end - begin + 1) * weight
        worst = max(worst, Fraction(int(off.max() - off.min()), sum(whole)))
    return worst


@pytest.mark.parametrize("begin", [0, 262_136, 10**12 + 7])
@pytest.mark.parametrize("weights", [[0.3123457, 0.6876543], [0.1234567891, 0.9], [1e-9, 0.7], [0.5, 0.0, 0.2000001]])
def test_any_window_of_two_sources_is_within_one_sample_whatever_the_weights(weights: list[float], begin: int) -> None:
    assert any_window(weights, begin, begin + 20_000) < 1


@pytest.mark.parametrize("begin", [0, 187_608, 10**12 + 7])
@pytest.mark.parametrize(
    ("weights", "bound"),
    [
        ([0.123456789, 0.987654321, 0.005551212], 2),
        ([0.333333333, 0.333333334, 0.333333333], 2),
        ([0.7000001, 0.25, 0.05, 0.0], 2),
        ([0.1234567, 0.2345671, 0.3456712, 0.2963051], 2.5),
        ([1.0000001, 1, 2, 3, 5, 8, 13, 21, 34], 3.36),
        ([0.1000001 + index / 1000 for index in range(17)], 3.36),
    ],
)
def test_any_window_of_more_sources_is_within_its_bound(weights: list[float], bound: float, begin: int) -> None:
    assert any_window(weights, begin, begin + 20_000) < bound


@pytest.mark.parametrize("weights", [[1e308, 1e-308], [1e308, 1e308, 1e-308], [5e-324, 1.7e308, 1.0]])
def test_extreme_weights_are_weights(weights: list[float]) -> None:
    sources, ranks = Pattern(weights).locate(np.arange(10**15, 10**15 + 50))
    assert 1e-308 not in [weights[source] for source in sources]
    assert ranks.max() < 10**15 + 50
    assert Pattern(weights).counts(10**15).sum() == 10**15


def test_nothing_drifts() -> None:
    weights = [123_456_789, 987_654_321, 5_551_212]
    assert np.abs(deviations(weights, 262_221)).max() < sum(weights)
    far = 10**12
    counts = Pattern(weights).counts(far)
    assert int(counts.sum()) == far
    for count, weight in zip(counts, weights, strict=True):
        assert abs(int(count) - Fraction(weight, sum(weights)) * far) < 1


@pytest.mark.parametrize("begin", [0, 1 << 20, (1 << 40) - 3, (1 << 62) - 17, (1 << 63) - 40])
@pytest.mark.parametrize("bits", [20, 30, 31, 32, 40, 62, 63, 64, 90])
def test_integers_of_64_bits_are_taken_only_where_they_are_exact(begin: int, bits: int) -> None:
    weights = [(1 << bits) - 1, (1 << bits - 1) + 12_345, 98_765, (1 << bits - 2) + 7]
    positions = np.array([begin, begin + 1, begin + 39, begin + 20], dtype=np.int64)
    sources, ranks = Pattern([Fraction(weight) for weight in weights]).locate(positions)
    for position, source, rank in zip(positions.tolist(), sources, ranks, strict=True):
        # In Python's integers throughout.
        before, after = (Pattern([Fraction(one) for one in weights]).counts(at) for at in (position, position + 1))
        assert (after - before).tolist() == np.eye(4, dtype=np.int64)[source].tolist()
        assert before[source] == rank


def test_small_weights_need_no_python_integers() -> None:
    small = Pattern([0.3123457, 0.6876543])
    assert small._exact(small._root, np.array([10**12])).dtype == np.int64
    assert small._exact(small._root, np.array([5], dtype=object)).dtype == np.int64
    large = Pattern([0.3123456789123, 0.6876543])
    assert large._exact(large._root, np.array([10**12])).dtype == object
    assert large._exact(large._root, np.array([10**4])).dtype == np.int64


def test_decimals_mean_what_they_say() -> None:
    positions = np.random.default_rng(0).integers(0, 10**9, 1000)
    exact = Pattern([Fraction(7, 10), Fraction(1, 4), Fraction(1, 20)]).locate(positions)
    for weights in ([0.7, 0.25, 0.05], [14, 5, 1]):
        got = Pattern(weights).locate(positions)
        assert np.array_equal(got[0], exact[0])
        assert np.array_equal(got[1], exact[1])


@pytest.mark.parametrize("weights", [[7, 2, 1], [7, 3], [9], [123_456_789, 987_654_321], [11, 10**9, 0, 10**8 + 1, 77]])
def test_counts_agree_with_the_order(weights: list[int]) -> None:
    pattern = Pattern(weights)
    for prefix in (0, 1, 9, 70_000):
        sources, _ = pattern.locate(np.arange(prefix))
        assert pattern.counts(prefix).tolist() == np.bincount(sources, minlength=len(weights)).tolist()
