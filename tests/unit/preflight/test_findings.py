from megaqk.preflight.findings import nodes_of, report, slow_nodes, slow_ranks
from megaqk.preflight.machines import Machine

MACHINES = [Machine(host, "cpu", {}) for host in ("a", "a", "b", "b")]


def test_a_slow_rank_is_named_with_its_node() -> None:
    assert slow_ranks([100e9, 100e9, 100e9, 40e9], MACHINES, 0.5) == [
        "rank 3 on b: multiplies at 40 GFLOP/s, 0.40 of the median 100: must be at least 0.5 of it"
    ]
    assert slow_ranks([100e9, 100e9, 100e9, 60e9], MACHINES, 0.5) == []


def test_a_node_that_is_slow_with_all_others_is_named_alone() -> None:
    pairs = {(one, other): 1e9 if 2 in (one, other) else 10e9 for one in range(5) for other in range(one + 1, 5)}
    assert slow_nodes(pairs, list("abcde"), 0.5) == [
        "c: exchanges at most 1 GB/s, 0.10 of the median 10: must be at least 0.5 of it"
    ]


def test_one_slow_connection_is_named_by_both_ends() -> None:
    pairs = {(one, other): 10e9 for one in range(4) for other in range(one + 1, 4)}
    pairs[1, 3] = 2e9
    assert [line.split(":")[0] for line in slow_nodes(pairs, list("abcd"), 0.5)] == ["b with d"]


def test_two_nodes_have_no_median_to_be_held_against() -> None:
    assert slow_nodes({(0, 1): 1.0}, ["a", "b"], 0.5) == []


def test_the_report_has_a_line_for_each_node_and_the_slowest_pairs() -> None:
    assert nodes_of(MACHINES) == {"a": [0, 1], "b": [2, 3]}
    text = report(MACHINES, [100e9, 98e9, 97e9, 40e9], {(0, 1): 2e9}, 1.5e9)
    assert text.splitlines() == [
        "node  ranks  device  products in GFLOP/s by rank",
        "a         2  cpu                          100 98",
        "b         2  cpu                           97 40",
        "",
        "reduction over all ranks: 1.5 GB/s a rank",
        "",
        "node  with  GB/s each way",
        "a     b                 2",
    ]
