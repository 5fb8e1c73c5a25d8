"""A multiplier that is more than a function of the step: it reads what was measured, and remembers."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import Rates


@dataclass
class HalvedByLogits:
    """Halves itself at each step whose largest logit is above a limit."""

    limit: float
    value: float = 1.0

    def at(self, moment: Moment) -> float:
        if moment.signals["largest_logit"] > self.limit:
            self.value /= 2
        return self.value

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def rates() -> Rates:
    sections = {"model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2}, "schedule": {"kind": "constant"}}
    config = build_config({**sections, "optimizer": {"lr": 0.1}, "qk_timing": {"enabled": True}})
    groups = plan_groups(config, parameter_inventory(config, rows=8))
    adaptive = [replace(g, multiplier=HalvedByLogits(50.0)) if g.name == "upper_qk" else g for g in groups]
    return Rates(config, adaptive)


def lr(rates: Rates, step: int, largest_logit: float) -> float:
    moment = Moment(step, signals={"largest_logit": largest_logit})
    by_name = {rate.name: rate for rate in rates.at(moment)}
    assert by_name["decay"].lr == 0.1
    return by_name["upper_qk"].lr


def test_a_measured_signal_changes_the_rate_and_a_resumed_run_goes_on_from_it() -> None:
    first = rates()
    assert [lr(first, step, logit) for step, logit in enumerate((10, 60, 40))] == [0.1, 0.05, 0.05]
    kept = json.loads(json.dumps(first.state()))
    assert kept == {"upper_qk": {"value": 0.5}}, "groups without a state keep nothing"
    second = rates()
    second.load_state(kept)
    assert lr(second, 3, 60) == lr(first, 3, 60) == pytest.approx(0.025)
