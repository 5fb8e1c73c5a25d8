"""The tensor-parallel layers on real ranks, against the layers of torch."""

import pytest
import torch

from megaqk.parallel.vocabulary import look_up
from tests.harness import run_distributed
from tests.unit.parallel import layers

TOLERANCE = 2e-5  # relative to the largest element


def check(results: list[dict[str, float]]) -> None:
    for rank, errors in enumerate(results):
        assert all(value <= TOLERANCE for value in errors.values()), (rank, errors)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("sequence", [False, True])
def test_column_and_row_parallel_linear(world: int, sequence: bool) -> None:
    for bias in (False, True):
        check(run_distributed(layers.column_and_row, world, sequence, bias))


# (48, 40): the last rank holds some padding; (48, 20): of four ranks the last two hold padding only.
@pytest.mark.parametrize(("rows", "tokens"), [(48, 48), (48, 40), (48, 20)])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("sequence", [False, True])
def test_embedding_head_and_cross_entropy(world: int, sequence: bool, rows: int, tokens: int) -> None:
    check(run_distributed(layers.embedding_head_and_loss, world, sequence, rows, tokens))


@pytest.mark.parametrize(("rows", "tokens"), [(48, 48), (48, 20)])
def test_one_rank_is_the_plain_path(rows: int, tokens: int) -> None:
    check(run_distributed(layers.embedding_head_and_loss, 1, False, rows, tokens))


@pytest.mark.parametrize("world", [1, 2])
def test_no_label_at_all(world: int) -> None:
    assert run_distributed(layers.nothing_to_learn, world) == [0.0] * world


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_norm_and_clipping_are_the_unsharded_ones(world: int, max_norm: float) -> None:
    results = run_distributed(layers.norm_and_clipping, world, max_norm)
    assert len({norm for norm, _ in results}) == 1
    assert all(norm <= 1e-6 and clipped <= 1e-5 for norm, clipped in results)


@pytest.mark.parametrize("world", [1, 2])
def test_cross_entropy_of_bf16_logits_is_computed_in_fp32(world: int) -> None:
    assert max(run_distributed(layers.bf16_cross_entropy, world)) <= TOLERANCE


def test_a_table_is_indexed_where_gradients_must_add_up_in_order() -> None:
    ids, grads = torch.tensor([[1, 3, 1]]), []
    for mode, node in (("default", "EmbeddingBackward0"), ("error", "IndexBackward0")):
        weight = torch.arange(8.0).view(4, 2).requires_grad_()
        torch.set_deterministic_debug_mode(mode)
        try:
            rows = look_up(ids, weight)
        finally:
            torch.set_deterministic_debug_mode("default")
        assert type(rows.grad_fn).__name__ == node
        assert rows.tolist() == [[[2, 3], [6, 7], [2, 3]]]
        rows.sum().backward()
        grads.append(weight.grad)
    assert grads[0].tolist() == grads[1].tolist() == [[0, 0], [2, 2], [0, 0], [1, 1]]
