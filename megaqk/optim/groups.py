"""The plan of optimizer groups: which parameters share a learning rate and a decay, under which name."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from megaqk.config.qk_timing import TimingRule
from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.model.parameters import ParameterInfo
from megaqk.optim.naming import rule_name
from megaqk.optim.timing import depth_factors


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        name: Short and unique, for logs and for finding the group in an optimizer.
        decay: Whether weight decay applies.
        parameters: Global names of its parameters, in the order of the model.
        numel: Elements of its parameters in the whole model.
        rule: The timing rule that acts on it; None where the multiplier is always 1.
        held: Multiplier during the hold of that rule.
    """

    name: str
    decay: bool
    parameters: tuple[str, ...]
    numel: int
    rule: TimingRule | None = None
    held: float = 1.0


def plan_groups(config: Config, parameters: Sequence[ParameterInfo]) -> tuple[ParameterGroup, ...]:
    """Decide the optimizer groups of a run.

    The plan follows from the configuration and the parameters of the whole model, never from what a rank owns, so
    it is the same on every rank. There is one group for each multiplier and decay class: `decay`, `no_decay`, then
    those of the rules in their order, by depth. None is empty.

    Args:
        config: The run.
        parameters: Every parameter of the whole model, in the order of the model.

    Returns:
        The ordered groups, which hold each parameter once.

    Raises:
        UserError: Where a projection of a rule names no parameter of this model.
    """
    claimed: set[str] = set()
    ruled: list[ParameterGroup] = []
    for index, rule in enumerate(config.qk_timing.active_rules):
        layers = rule.layers.resolve(config.model.num_layers)
        hit = [parameter for parameter in parameters if _acts_on(rule, layers, parameter)]
        for projection in rule.projections:
            if not any(parameter.projection == projection for parameter in hit):
                raise UserError(_no_match(config, index, projection))
        claimed.update(parameter.name for parameter in hit)
        name = rule_name(rule, layers, config.model.num_layers)
        if config.qk_timing.rules:
            name = f"rule{index}.{name}"
        ruled.extend(_rule_groups(name, rule, layers, hit, config.model.num_layers))
    rest = [parameter for parameter in parameters if parameter.name not in claimed]
    base = [_group("decay" if decay else "no_decay", decay, rest) for decay in (True, False)]
    return tuple(group for group in (*base, *ruled) if group.parameters)


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
    # The digest covers the parameters and the rule, which would make unreadable lines.
    return [
        f"{group.name} ({len(group.parameters)} parameters, {hashlib.sha256(repr(group).encode()).hexdigest()[:8]})"
        for group in groups
    ]


def _acts_on(rule: TimingRule, layers: Collection[int], parameter: ParameterInfo) -> bool:
    if parameter.projection not in rule.projections:
        return False
    return parameter.projection == "embedding" or parameter.layer in layers


def _rule_groups(
    name: str, rule: TimingRule, layers: Sequence[int], hit: Sequence[ParameterInfo], num_layers: int
) -> list[ParameterGroup]:
    """The groups of one rule: one for each held value, split into decay and no decay."""
    if rule.depth_profile == "uniform":
        parts = [(name, rule.multiplier, hit)]
    else:
        width = max(2, len(str(num_layers - 1)))
        parts = [
            (f"{name}.layer{layer:0{width}}", held, [parameter for parameter in hit if parameter.layer == layer])
            for layer, held in depth_factors(rule, layers).items()
        ]
    return [
        _group(part if decay else f"{part}.no_decay", decay, members, rule, held)
        for part, held, members in parts
        for decay in (True, False)
    ]


def _group(
    name: str, decay: bool, members: Sequence[ParameterInfo], rule: TimingRule | None = None, held: float = 1.0
) -> ParameterGroup:
    members = [parameter for parameter in members if parameter.decay == decay]
    return ParameterGroup(
        name=name,
        decay=decay,
        parameters=tuple(parameter.name for parameter in members),
        numel=sum(parameter.numel for parameter in members),
        rule=rule,
        held=held,
    )


def _no_match(config: Config, index: int, projection: str) -> str:
    message = f"{config.qk_timing.rule_key(index)}.projections = {projection}: names no parameter of this model"
    if projection == "ffn_gate":
        message += f"; model.feed_forward = {config.model.feed_forward} has no gate"
    if projection == "norm":
        message += "'s selected layers"
    return message
