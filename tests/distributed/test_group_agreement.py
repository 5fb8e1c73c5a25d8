from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import describe_groups, plan_groups
from megaqk.parallel.world import World
from megaqk.runtime.launch import read_launch
from tests.harness import run_distributed


def compare(multipliers: list[float]) -> str:
    world = World(build_config({"training": {"global_batch_size": 12, "micro_batch_size": 2}}), read_launch()).connect()
    config = build_config(
        {
            "model": {"preset": "llama", "num_layers": 2, "hidden_size": 8, "num_heads": 2},
            "qk_timing": {"enabled": True, "multiplier": multipliers[world.rank]},
        }
    )
    try:
        world.require_same(
            describe_groups(plan_groups(config, parameter_inventory(config, rows=8))), "parameter groups"
        )
    except UserError as error:
        return str(error)
    return ""


def test_ranks_that_agree_go_on() -> None:
    assert run_distributed(compare, 2, [0.1, 0.1], init=False) == ["", ""]


def test_ranks_that_differ_stop_with_the_same_table() -> None:
    first, *others = run_distributed(compare, 3, [0.1, 0.2, 0.1], init=False)
    assert others == [first, first]
    # The names agree; the rule behind one of them does not.
    assert first.startswith("the ranks differ in their parameter groups: rank 0 has upper_qk (2 parameters, ")
    assert ", rank 1 has upper_qk (2 parameters, " in first
