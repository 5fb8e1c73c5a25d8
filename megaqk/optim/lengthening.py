"""A resumed run of another length: its schedule and multiplier must not go back in silence."""

import logging
from collections.abc import Sequence
from typing import Any

from megaqk.config.loading import restore_config
from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.model.parameters import ParameterInfo
from megaqk.optim.groups import plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import Rates

logger = logging.getLogger("megaqk")

ROUNDING = 1e-3
"""Relative change of a rate that is none."""


def check_length(stored: dict[str, Any], config: Config, moment: Moment, parameters: Sequence[ParameterInfo]) -> None:
    """Refuse a new length that makes the learning rate rise or a multiplier fall where the run goes on.

    Only what the length does is asked: any other key is changed on purpose.

    Args:
        stored: The configuration that the run had, dumped.
        config: The one that it has now.
        moment: Where it goes on.
        parameters: Every parameter of the whole model.

    Raises:
        UserError: In that case, unless `schedule.accept_jump`.
    """
    before = restore_config(stored)
    if before.schedule_steps == config.schedule_steps:
        return
    # Not checked anew: its warm-up may be longer than the new length.
    schedule = before.schedule.model_copy(update={"steps": config.schedule_steps})
    after = before.model_copy(update={"schedule": schedule})
    was, now = (Rates(settings, plan_groups(settings, parameters)) for settings in (before, after))
    lr = was.base(moment.step), now.base(moment.step)
    pairs = list(zip(was.at(moment), now.at(moment), strict=True))
    fallen = [(old, new) for old, new in pairs if new.multiplier < old.multiplier * (1 - ROUNDING)]
    if not fallen and lr[1] <= lr[0] * (1 + ROUNDING):
        return
    words = f"the learning rate from {lr[0]:.4g} to {lr[1]:.4g}"
    if fallen:
        old, new = fallen[0]
        more = f" (and {len(fallen) - 1} more)" if fallen[1:] else ""
        words += f" and the multiplier of {old.name}{more} from {old.multiplier:.4g} to {new.multiplier:.4g}"
    key = "training" if config.schedule.steps is None else "schedule"
    line = (
        f"{key}.steps = {config.schedule_steps}: takes {words} in step {moment.step + 1}, where the run had "
        f"{before.schedule_steps} steps"
    )
    if config.schedule.accept_jump:
        logger.warning("%s", line)
        return
    raise UserError(
        f"{line}; keep schedule and multipliers with schedule.steps={before.schedule_steps}, or "
        "accept it with schedule.accept_jump=true"
    )
