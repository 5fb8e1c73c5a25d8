import torch.distributed as dist

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import compare_groups_across_ranks, plan_groups
from tests.harness import run_distributed


def compare(multipliers: list[float]) -> str:
    config = build_config(
        {
            "model": {"preset": "llama", "num_layers": 2, "hidden_size": 8, "num_heads": 2},
            "qk_timing": {"enabled": True, "multiplier": multipliers[dist.get_rank()]},
        }
    )
    try:
        compare_groups_across_ranks(plan_groups(config, parameter_inventory(config, rows=8)))
    except UserError as error:
        return str(error)
    return ""


def test_ranks_that_agree_go_on() -> None:
    assert run_distributed(compare, 2, [0.1, 0.1]) == ["", ""]


def test_ranks_that_differ_stop_with_the_same_table() -> None:
    first, *others = run_distributed(compare, 3, [0.1, 0.2, 0.1])
    assert others == [first, first]
    headline, *table = first.splitlines()
    assert headline == "the ranks differ in their parameter groups"
    # The names agree; the rule behind one of them does not.
    assert [line.split(",")[0] for line in table] == ["  2: upper_qk (2 parameters"] * 2
    assert [line.split("on ranks ")[1] for line in table] == ["0, 2", "1"]
