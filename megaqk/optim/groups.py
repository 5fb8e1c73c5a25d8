"""The plan of optimizer groups: which parameters share a learning rate and a decay, under which name."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from megaqk.config.model import Projection
from megaqk.config.qk_timing import TimingRule
from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.model.parameters import ParameterInfo
from megaqk.optim.multipliers import Constant, Multiplier
from megaqk.optim.optimizers import ADAMW, OptimizerOwner
from megaqk.optim.timing import Clock, Timing, depth_factors

UNRULED = Constant()
"""The multiplier of groups that no rule acts on."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share an optimizer, a learning rate and a weight decay.

    Attributes:
        name: Short and unique, for logs and for finding the group in an optimizer.
        optimizer: Name of the `OptimizerOwner` that updates them.
        decay: Whether weight decay applies.
        parameters: Global names of its parameters, in the order of the model.
        numel: Elements of its parameters in the whole model.
        multiplier: Scales its learning rate.
    """

    name: str
    optimizer: str
    decay: bool
    parameters: tuple[str, ...]
    numel: int
    multiplier: Multiplier


def plan_groups(
    config: Config, parameters: Sequence[ParameterInfo], owners: Sequence[OptimizerOwner] = ()
) -> tuple[ParameterGroup, ...]:
    """Decide the optimizer groups of a run.

    The plan follows from the configuration and the parameters of the whole model, never from what a rank owns, so
    it is the same on every rank. There is one group for each multiplier, decay class and optimizer: `decay`,
    `no_decay`, then those of the rules in their order, by depth. None is empty.

    Args:
        config: The run.
        parameters: Every parameter of the whole model, in the order of the model.
        owners: Optimizers that take what they own; AdamW has the rest. Their groups are called as AdamW's, and then
            `.<name of the owner>`.

    Returns:
        The ordered groups, which hold each parameter once.

    Raises:
        UserError: Where a projection of a rule names no parameter of this model.
    """
    num_layers = config.model.num_layers
    clock = Clock.of(config)
    claimed: set[str] = set()
    ruled: list[tuple[str, Multiplier, Sequence[ParameterInfo]]] = []
    for index, rule in enumerate(config.qk_timing.active_rules):
        layers = rule.layers.resolve(num_layers)
        hit = [parameter for parameter in parameters if _acts_on(rule, layers, parameter)]
        for projection in rule.projections:
            if not any(parameter.role.projection == projection for parameter in hit):
                raise UserError(_no_match(config, index, projection))
        claimed.update(parameter.name for parameter in hit)
        name = _rule_name((parameter.role.projection for parameter in hit), layers, num_layers)
        if config.qk_timing.rules:
            name = f"rule{index}.{name}"
        if rule.depth_profile == "uniform":
            ruled.append((name, Timing(rule=rule, clock=clock, held=rule.multiplier), hit))
            continue
        width = max(2, len(str(num_layers - 1)))
        for layer, held in depth_factors(rule, layers).items():
            part = [parameter for parameter in hit if parameter.role.layer == layer]
            ruled.append((f"{name}.layer{layer:0{width}}", Timing(rule=rule, clock=clock, held=held), part))
    rest = [parameter for parameter in parameters if parameter.name not in claimed]
    groups = _split("decay", "no_decay", UNRULED, rest, owners)
    for name, multiplier, members in ruled:
        groups += _split(name, f"{name}.no_decay", multiplier, members, owners)
    return tuple(groups)


def _split(
    decayed: str,
    undecayed: str,
    multiplier: Multiplier,
    members: Sequence[ParameterInfo],
    owners: Sequence[OptimizerOwner],
) -> list[ParameterGroup]:
    """The groups of parameters under one multiplier, by optimizer and decay; none that would be empty."""
    parts: dict[tuple[str, bool], list[ParameterInfo]] = {
        (optimizer, decay): [] for optimizer in (ADAMW, *(owner.name for owner in owners)) for decay in (True, False)
    }
    for parameter in members:
        owner = next((owner.name for owner in owners if owner.owns(parameter)), ADAMW)
        parts[owner, parameter.role.decay].append(parameter)
    return [
        ParameterGroup(
            name=(decayed if decay else undecayed) + ("" if optimizer == ADAMW else f".{optimizer}"),
            optimizer=optimizer,
            decay=decay,
            parameters=tuple(parameter.name for parameter in part),
            numel=sum(parameter.numel for parameter in part),
            multiplier=multiplier,
        )
        for (optimizer, decay), part in parts.items()
        if part
    ]


def _rule_name(projections: Iterable[Projection], layers: Sequence[int], num_layers: int) -> str:
    """A readable name of what a rule acts on, such as `upper_qk` or `all_value_output`.

    Args:
        projections: What it acts on, in the order of the model; may repeat.
        layers: The layers it selects, ascending.
        num_layers: Blocks of the whole model.

    Returns:
        Where and what: `all`, `upper` (to the last layer), `lower` (from the first), `middle` or `some` (with gaps),
        and the projections, query and key as `qk`.
    """
    ordered = list(dict.fromkeys(projections))
    what = "_".join(ordered).replace("query_key", "qk")
    if ordered == ["embedding"]:
        return what
    first, end = layers[0], layers[-1] + 1
    if len(layers) != end - first:
        return f"some_{what}"
    if end == num_layers:
        return f"{'upper' if first else 'all'}_{what}"
    return f"{'middle' if first else 'lower'}_{what}"


def groups_missing_on(groups: Sequence[ParameterGroup], local_names: Collection[str]) -> list[str]:
    """Groups of the plan of which a rank or stage owns no parameter.

    Args:
        groups: The plan.
        local_names: Global names of the parameters that the rank or stage owns.

    Returns:
        Names of the missing groups, in the order of the plan.
    """
    local = set(local_names)
    return [group.name for group in groups if local.isdisjoint(group.parameters)]


def describe_groups(groups: Sequence[ParameterGroup]) -> list[str]:
    """A line for each group that differs where anything in it does, for comparing the plans of ranks."""
    # The digest covers the parameters and the multiplier, which would make unreadable lines.
    return [
        f"{group.name} ({len(group.parameters)} parameters, {hashlib.sha256(repr(group).encode()).hexdigest()[:8]})"
        for group in groups
    ]


def _acts_on(rule: TimingRule, layers: Collection[int], parameter: ParameterInfo) -> bool:
    role = parameter.role
    return role.projection in rule.projections and (role.projection == "embedding" or role.layer in layers)


def _no_match(config: Config, index: int, projection: str) -> str:
    message = f"{config.qk_timing.rule_key(index)}.projections = {projection}: names no parameter of this model"
    if projection == "ffn_gate":
        message += f"; model.feed_forward = {config.model.feed_forward} has no gate"
    if projection == "norm":
        message += "'s selected layers"
    return message
