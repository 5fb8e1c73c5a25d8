"""The step-size factor of the pathwise bound: how far the learning rate could have moved queries and keys."""

import math
from collections.abc import Mapping
from types import MappingProxyType

from megaqk.config.root import Config
from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import Rates

_MATRICES = 2


def step_size_factors(
    config: Config, first: int, end: int, recorded: Mapping[int, Mapping[str, float]] = MappingProxyType({})
) -> dict[str, list[float]]:
    """The sum of lr(t) m(t) over the steps [first, end) of the query and of the key weight of each layer.

    Args:
        config: The run; a step counts as `training.tokens_per_step` tokens.
        first: Steps taken before them.
        end: Steps taken after them.
        recorded: What some steps were really taken with, as `lr/<group>` by step. Where one is not what the
            configuration says, since the run came here with another, its group has no factor: NaN.
    """
    # Neither groups nor rates depend on the size of the vocabulary.
    parameters = parameter_inventory(config, rows=1)
    groups = plan_groups(config, parameters)
    rates, totals = Rates(config, groups), dict.fromkeys((group.name for group in groups), 0.0)
    for step in range(first, end):
        for rate in rates.at(Moment(step)):
            taken = recorded.get(step + 1, {}).get(f"lr/{rate.name}", rate.lr)
            totals[rate.name] += rate.lr if math.isclose(taken, rate.lr, rel_tol=1e-6) else math.nan
    group_of = {name: group.name for group in groups for name in group.parameters}
    return {
        projection: [
            totals[group_of[parameter.name]]
            for parameter in parameters
            if parameter.role.projection == projection and len(parameter.shape) == _MATRICES
        ]
        for projection in ("query", "key")
    }
