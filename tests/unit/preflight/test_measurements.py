from itertools import combinations

import pytest
import torch
import torch.distributed as dist

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.parallel.world import World
from megaqk.preflight.measurements import exchange_rates, product_rate, reduction_rate, rounds
from megaqk.runtime.launch import Launch
from megaqk.runtime.pulse import Pulse
from tests.harness import run_distributed


@pytest.mark.parametrize("nodes", range(1, 12))
def test_each_two_nodes_meet_once_and_none_meets_two_at_a_time(nodes: int) -> None:
    met = []
    for partners in rounds(nodes):
        assert [partners[partner] for partner in partners] == list(range(nodes))
        met += [(node, partner) for node, partner in enumerate(partners) if node < partner]
    assert sorted(met) == list(combinations(range(nodes), 2))


def connected() -> World:
    launch = Launch(rank=dist.get_rank(), world_size=dist.get_world_size())
    return World(build_config({}), launch).connect()


def exchanged(nodes: list[list[int]]) -> dict[tuple[int, int], float]:
    return exchange_rates(connected(), nodes, Pulse())


def test_all_ranks_have_the_rate_of_each_pair_of_nodes() -> None:
    # A node of two ranks beside nodes of one: the second has no partner.
    first, *others = run_distributed(exchanged, 4, [[0, 1], [2], [3]])
    assert set(first) == {(0, 1), (0, 2), (1, 2)}
    assert all(rate > 1e6 for rate in first.values())
    assert others == [first] * 3


def reduced(wrong: int) -> str | float:
    world = connected()
    world.rank += wrong * (world.rank == 1)
    try:
        return reduction_rate(world)
    except UserError as error:
        return str(error)


def test_a_reduction_has_a_rate_and_a_right_sum() -> None:
    assert all(rate > 1e6 for rate in run_distributed(reduced, 2, 0))
    assert set(run_distributed(reduced, 2, 3)) == {"a reduction over all ranks gives 6: must be 3"}


def multiplied() -> float:
    return product_rate(torch.device("cpu"), torch.float32, seconds=0.01)


def test_each_rank_has_its_rate() -> None:
    assert all(rate > 1e8 for rate in run_distributed(multiplied, 2))
