from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import plan_groups
from megaqk.optim.lengthening import check_length
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import Rates

TIMING = {"enabled": True, "multiplier": 0.5, "hold": 0.4, "release": "step"}


def config(timing: dict[str, Any] = TIMING, **schedule: Any) -> Config:
    steps = schedule.pop("training", 20)
    return build_config(
        {
            "model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2},
            "optimizer": {"lr": 0.01},
            "schedule": {"kind": "linear", "min_lr_ratio": 0.0, **schedule},
            "training": {"steps": steps},
            "qk_timing": timing,
        }
    )


def check(was: Config, now: Config, step: int) -> None:
    check_length(was.model_dump(mode="json"), now, Moment(step, 0), parameter_inventory(now, rows=8))


def test_schedule_and_fractions_count_over_the_length_of_the_schedule() -> None:
    settings = config(steps=20, training=40)
    rates = Rates(settings, plan_groups(settings, parameter_inventory(settings, rows=8)))
    assert [rates.at(Moment(step))[2].multiplier for step in (7, 8, 39)] == [0.5, 1.0, 1.0]
    assert [rates.base(step) for step in (0, 10, 20, 39)] == pytest.approx([0.01, 0.005, 0.0, 0.0])


@pytest.mark.parametrize(
    ("now", "step", "said"),
    [
        # Step 10: linear 1 - 10/20 = 0.5 becomes 1 - 10/40 = 0.75; 10/20 was released at 0.4, 10/40 is not.
        ({"training": 40}, 10, "training.steps = 40: takes the learning rate from 0.005 to 0.0075 and the multiplier "),
        ({"steps": 40}, 10, "schedule.steps = 40: takes the learning rate from 0.005 to 0.0075 and the multiplier "),
        # 16/40 is the end of the hold: the learning rate alone.
        ({"training": 40}, 16, "training.steps = 40: takes the learning rate from 0.002 to 0.006 in step 17, "),
    ],
)
def test_a_longer_run_that_goes_back_is_refused(now: dict[str, Any], step: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(config(), config(**now), step)
    line = str(caught.value)
    assert line.startswith(said)
    assert ("of upper_qk (and 1 more) from 1 to 0.5 in step 11" in line) == (step == 10)
    assert "schedule.steps=20, or accept it with schedule.accept_jump=true" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("was", "now", "step"),
    [
        ({}, {"training": 40, "steps": 20}, 20),
        ({}, {"training": 40, "accept_jump": True}, 20),
        ({}, {"training": 15}, 10),  # shorter: slower, and released earlier
        ({"kind": "wsd"}, {"kind": "wsd", "training": 40}, 17),  # before the decay
        ({"kind": "constant"}, {"kind": "constant", "training": 10_000, "warmup_steps": 500}, 2),
        ({"training": 600, "warmup_steps": 500}, {}, 2),  # warm-up and length both shortened
        ({}, {"training": 20, "kind": "constant"}, 10),  # it rises, and not by the length
    ],
)
def test_what_goes_back_in_nothing_passes(was: dict[str, Any], now: dict[str, Any], step: int) -> None:
    check(config(**was), config(**now), step)


def test_rules_and_a_configuration_without_the_newer_keys() -> None:
    was = config(
        {"enabled": True, "rules": [{k: v for k, v in (TIMING | {"multiplier": 0.25}).items() if k != "enabled"}]}
    ).model_dump(mode="json")  # type: ignore[arg-type]
    del was["schedule"]["steps"], was["schedule"]["accept_jump"]
    now = config(training=40)
    with pytest.raises(UserError, match=r"the multiplier of rule0\.upper_qk .* from 1 to 0\.25"):
        check_length(was, now, Moment(10), parameter_inventory(now, rows=8))
