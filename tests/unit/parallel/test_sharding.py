import pytest
import torch

from megaqk.parallel.sharding import local_part, new_parameter, sharding_of
from megaqk.parallel.tensor_parallel import TensorParallel


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_parts_put_together_are_the_whole(size: int, dim: int | None) -> None:
    full = torch.randn(12, 24)
    parts = []
    for rank in range(size):
        tp = TensorParallel(size=size, rank=rank)
        parameter = new_parameter((12, 24), tp, dim=dim)
        part = local_part(full, sharding_of(parameter), tp)
        assert part.shape == parameter.shape
        parts.append(part)
    assert all(torch.equal(part, full) for part in parts) if dim is None else torch.equal(torch.cat(parts, dim), full)


def test_what_a_parameter_records() -> None:
    tp = TensorParallel(size=2, rank=1)
    sharding = sharding_of(new_parameter((4, 6), tp, dim=1))
    assert (sharding.shape, sharding.dim, sharding.partial_gradient) == ((4, 6), 1, False)
    assert sharding_of(new_parameter((4,), tp, partial_gradient=True)).partial_gradient
    # One rank sees the whole gradient.
    assert not sharding_of(new_parameter((4,), TensorParallel(), partial_gradient=True)).partial_gradient


def test_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="10 cannot be split over 4"):
        new_parameter((10, 3), TensorParallel(size=4), dim=0)
