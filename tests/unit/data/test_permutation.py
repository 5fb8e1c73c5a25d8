import numpy as np
import pytest

from megaqk.data.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 1000, 4097, 100_003])
def test_is_a_bijection(size: int) -> None:
    image = Permutation(size, "train", 1)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


def test_is_a_pure_function_of_index_size_and_key() -> None:
    indices = np.array([[5, 0], [999, 5]])
    whole = Permutation(1000, "a", 3)(np.arange(1000))
    assert np.array_equal(Permutation(1000, "a", 3)(indices), whole[indices])
    for other in (Permutation(1000, "a", 4), Permutation(1000, "b", 3), Permutation(1001, "a", 3)):
        # Two unrelated permutations of n agree in about one place.
        assert (other(np.arange(1000)) == whole).sum() < 10


def test_images_are_spread_evenly() -> None:
    # Of the first tenth of the indices, each tenth of the range gets its share (expected 1000, sd about 28).
    image = Permutation(100_000, 0)(np.arange(10_000))
    assert np.abs(np.bincount(image // 10_000, minlength=10) - 1000).max() < 150
    # Neighbours do not stay neighbours.
    assert (np.abs(np.diff(image)) < 10).mean() < 0.001


def test_small_sizes_reach_many_orders() -> None:
    orders = {tuple(Permutation(5, seed)(np.arange(5))) for seed in range(500)}
    assert len(orders) > 50


def test_costs_nothing_to_build_for_huge_sizes() -> None:
    size = 10**15
    image = Permutation(size, 0)(np.arange(100_000) + size - 100_000)
    assert len(np.unique(image)) == 100_000
    assert image.min() >= 0
    assert image.max() < size


@pytest.mark.parametrize("index", [-1, 10])
def test_refuses_indices_outside(index: int) -> None:
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        Permutation(10)(np.array([0, index]))
