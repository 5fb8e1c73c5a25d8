"""Learning rate and decay of every group at a moment, from the configuration, and into the optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megaqk.config.root import Config
from megaqk.optim.groups import ParameterGroup
from megaqk.optim.multipliers import Moment
from megaqk.optim.schedules import lr_factor


class GroupRate(NamedTuple):
    """What a group's next update uses.

    Attributes:
        name: The group.
        lr: Learning rate, multiplier included.
        multiplier: What its multiplier says.
        weight_decay: Factor that AdamW multiplies by `lr` to get the decay of a step.
    """

    name: str
    lr: float
    multiplier: float
    weight_decay: float


class Rates:
    """The rates of a run.

    lr = optimizer.lr x schedule(t) x m(t). AdamW decays by lr x weight_decay; `qk_timing.weight_decay` says whether m
    is in that product (scaled) or taken out of it by dividing the weight decay by m (unscaled).
    """

    def __init__(self, config: Config, groups: Sequence[ParameterGroup]) -> None:
        self._optimizer = config.optimizer
        self._schedule = config.schedule
        self._total_steps = config.schedule_steps
        self._unscaled = config.qk_timing.weight_decay == "unscaled"
        self._groups = tuple(groups)

    def base(self, step: int) -> float:
        """The learning rate at multiplier 1 when so many steps have been taken."""
        return self._optimizer.lr * lr_factor(self._schedule, step, self._total_steps)

    def at(self, moment: Moment) -> list[GroupRate]:
        """The rates of every group for the step about to be taken, in the order of the plan."""
        base = self.base(moment.step)
        rates = []
        for group in self._groups:
            m = group.multiplier.at(moment)
            decay = self._optimizer.weight_decay if group.decay else 0.0
            rates.append(GroupRate(group.name, base * m, m, decay / m if self._unscaled else decay))
        return rates

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint must keep of the multipliers, by group, for JSON; groups without a state are left out."""
        states = {group.name: group.multiplier.state() for group in self._groups}
        return {name: state for name, state in states.items() if state}

    def load_state(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Go on from a checkpoint's `state`."""
        for group in self._groups:
            if group.name in states:
                group.multiplier.load_state(states[group.name])


def apply_rates(param_groups: Sequence[dict[str, Any]], rates: Sequence[GroupRate]) -> None:
    """Write lr and weight decay into an optimizer's live groups.

    Groups are found by name at each call: loading a checkpoint replaces the dicts, or their lr and order.

    Args:
        param_groups: `optimizer.param_groups` as it is now; each dict has a `name`.
        rates: Rates of this step.

    Raises:
        RuntimeError: Where the names are not those of the rates, each once.
    """
    by_name = {rate.name: rate for rate in rates}
    names = [group.get("name") for group in param_groups]
    if len(names) != len(by_name) or set(names) != by_name.keys():
        raise RuntimeError(f"the optimizer has the groups {names}, the plan has {list(by_name)}")
    for group in param_groups:
        rate = by_name[group["name"]]
        group["lr"] = rate.lr
        group["weight_decay"] = rate.weight_decay
