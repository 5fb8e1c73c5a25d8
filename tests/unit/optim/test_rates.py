from typing import Any

import pytest
import torch

from megaqk.config.loading import build_config
from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import GroupRate, Rates, apply_rates


def rates(timing: dict[str, Any]) -> Rates:
    config = build_config(
        {
            "model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2},
            "optimizer": {"lr": 0.01, "weight_decay": 0.1},
            "schedule": {"kind": "linear", "warmup_steps": 2, "min_lr_ratio": 0.0},
            "training": {"steps": 10},
            "qk_timing": {"enabled": True, "unit": "steps", "hold": 2, "release_end": 4, "multiplier": 0.5, **timing},
        }
    )
    return Rates(config, plan_groups(config, parameter_inventory(config, rows=8)))


def test_lr_is_peak_times_schedule_times_multiplier() -> None:
    at_step_3 = rates({}).at(Moment(3))  # schedule 7/8, multiplier 0.75
    assert [rate.name for rate in at_step_3] == ["decay", "no_decay", "upper_qk", "upper_qk.no_decay"]
    assert [rate.lr for rate in at_step_3] == pytest.approx([0.00875, 0.00875, 0.0065625, 0.0065625])
    assert [rate.multiplier for rate in at_step_3] == [1.0, 1.0, 0.75, 0.75]
    assert [rate.weight_decay for rate in at_step_3] == [0.1, 0.0, 0.1, 0.0]
    assert rates({}).at(Moment(0))[2].lr == pytest.approx(0.01 * 0.5 * 0.5)


def test_after_the_release_all_groups_run_alike_to_the_bit() -> None:
    for step in range(4, 12):
        assert len({rate.lr for rate in rates({}).at(Moment(step))}) == 1


def test_unscaled_decay_is_what_it_would_be_without_the_multiplier() -> None:
    for step in range(6):
        decay, _, upper, upper_biases = rates({"weight_decay": "unscaled"}).at(Moment(step))
        assert upper.lr * upper.weight_decay == pytest.approx(decay.lr * decay.weight_decay, rel=1e-15)
        assert upper_biases.weight_decay == 0.0


def test_a_multiplier_of_zero_freezes_a_weight() -> None:
    upper = rates({"multiplier": 0.0}).at(Moment(0))[2]
    assert upper.lr == 0.0
    weight = torch.nn.Parameter(torch.randn(3))
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([{"params": [weight], "name": upper.name}])
    apply_rates(optimizer.param_groups, [upper])
    weight.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(weight, before)


RATES = [GroupRate("decay", 0.1, 1.0, 0.3), GroupRate("upper_qk", 0.2, 0.5, 0.4)]


def test_rates_are_written_by_name_whatever_the_order() -> None:
    groups: list[dict[str, Any]] = [{"name": "upper_qk", "lr": 9.0, "params": []}, {"name": "decay", "lr": 9.0}]
    apply_rates(groups, RATES)
    assert groups == [
        {"name": "upper_qk", "lr": 0.2, "weight_decay": 0.4, "params": []},
        {"name": "decay", "lr": 0.1, "weight_decay": 0.3},
    ]


@pytest.mark.parametrize("names", [["decay"], ["decay", "other"], ["decay", None], ["decay", "decay", "upper_qk"]])
def test_groups_that_are_not_those_of_the_plan_are_refused(names: list[str | None]) -> None:
    groups: list[dict[str, Any]] = [{"name": name} if name else {} for name in names]
    with pytest.raises(RuntimeError, match=r"the plan has \['decay', 'upper_qk'\]$"):
        apply_rates(groups, RATES)


def test_each_layer_of_a_depth_profile_has_its_own_rate() -> None:
    timing = {"layers": {"fraction": [0, 1]}, "depth_profile": "linear", "multiplier": 0.2}
    held = {rate.name: rate.multiplier for rate in rates(timing).at(Moment(0))}
    released = {rate.name: rate.multiplier for rate in rates(timing).at(Moment(3))}  # half of the way back
    assert held == {"decay": 1, "no_decay": 1} | {
        f"all_qk.layer0{layer}{kind}": pytest.approx(value)
        for layer, value in ((0, 0.6), (1, 0.2))
        for kind in ("", ".no_decay")
    }
    assert released["all_qk.layer00"] == pytest.approx(0.8)
    assert released["all_qk.layer01"] == pytest.approx(0.6)
