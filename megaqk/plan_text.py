"""The resolved plan of a run as text: everything that is known before a process starts."""

from collections.abc import Sequence
from dataclasses import fields

from megaqk.config.root import Config
from megaqk.model.decoder import stage_bounds
from megaqk.model.parameters import ParameterInfo
from megaqk.optim.groups import ParameterGroup
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import Rates
from megaqk.optim.timing import Timing
from megaqk.parallel.world import World
from megaqk.runtime.text_table import table
from megaqk.training.zero_memory import HOST_PARTS, Memory

RANKS_SHOWN = 16
"""Longest list of ranks that is shown whole."""

GIB = 2**30


def resolved_plan(
    config: Config, world: World, parameters: Sequence[ParameterInfo], groups: Sequence[ParameterGroup]
) -> str:
    """Describe a run.

    Args:
        config: The run.
        world: Its processes.
        parameters: Every parameter of the whole model.
        groups: The optimizer groups.

    Returns:
        Several paragraphs and tables for a terminal, without a newline at the end.
    """
    return "\n\n".join(
        (
            _summary(config, world, parameters),
            "Stages\n" + _stages(config, world, parameters),
            "Ranks\n" + _ranks(world),
            "Parameter groups, and their multiplier when so many steps have been taken\n" + _groups(config, groups),
            *_never_released(config, groups),
        )
    )


def memory_table(stages: Sequence[Memory]) -> str:
    """What the fullest rank of each pipeline stage needs, part by part, in GiB."""
    parts = [field.name for field in fields(Memory) if field.name not in HOST_PARTS] + ["total"]
    parts += [part for part in HOST_PARTS if any(getattr(memory, part) for memory in stages)]
    rows = [
        [str(stage), *(f"{getattr(memory, part) / GIB:.2f}" for part in parts)] for stage, memory in enumerate(stages)
    ]
    return (
        "Memory in GiB of the fullest rank of each stage, at its highest moment; host and snapshot: of the host\n"
        + table([["stage", *parts], *rows])
    )


def _summary(config: Config, world: World, parameters: Sequence[ParameterInfo]) -> str:
    training, model = config.training, config.model
    total = sum(parameter.numel for parameter in parameters)
    embedding = sum(parameter.numel for parameter in parameters if parameter.role.projection == "embedding")
    lines = [
        ("run", config.run.dir),
        (
            "length",
            f"{training.steps:,} steps x {training.global_batch_size} samples x {training.sequence_length} tokens = "
            f"{training.steps * training.tokens_per_step:,} tokens"
            + ("" if config.schedule.steps is None else f", schedule over {config.schedule.steps:,} steps"),
        ),
        (
            "model",
            f"{model.num_layers} layers, hidden {model.hidden_size}, {model.num_heads} heads "
            f"({model.kv_heads} key/value) of {model.head_size}, {model.feed_forward} {model.ffn_width}, {model.norm}, "
            f"{model.positions} positions",
        ),
        ("parameters", f"{total:,}, of which {embedding:,} in embeddings and head"),
        (
            "processes",
            f"{world.size} = pipeline {world.pipeline} x data {world.data} x tensor {world.tensor}, "
            f"ZeRO-{config.parallel.zero_stage}, {training.precision}",
        ),
        (
            "a step",
            f"{world.micro_batches} micro-batches of {training.micro_batch_size} samples on every replica, "
            f"pipeline bubble {world.bubble_fraction:.1%}",
        ),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in lines)


def _stages(config: Config, world: World, parameters: Sequence[ParameterInfo]) -> str:
    head = "tied head" if config.model.tied_embedding else "head"
    rows = [("stage", "layers", "parameters", "on each rank")]
    bounds = stage_bounds(world.layers_per_stage)
    for stage, (first, end) in enumerate(world.layers_per_stage):
        places = range(bounds[stage], bounds[stage + 1])
        owned = [parameter for parameter in parameters if any(place in places for place in parameter.places)]
        parts = ["none" if first == end else f"{first}-{end - 1}" if end - first > 1 else f"{first}"]
        parts += ["embedding"] * (stage == 0) + [head] * (stage == world.pipeline - 1)
        local = sum(p.numel // (1 if p.shard_dim is None else world.tensor) for p in owned)
        rows.append((str(stage), " + ".join(parts), f"{sum(p.numel for p in owned):,}", f"{local:,}"))
    return table(rows)


def _ranks(world: World) -> str:
    rows = [[str(rank), *map(str, world.coordinate_of(rank))] for rank in range(world.size)]
    if world.size > RANKS_SHOWN:
        half = RANKS_SHOWN // 2
        rows = [*rows[:half], ["..."] * 4, *rows[-half:]]
    return table([["rank", "pipeline", "data", "tensor"], *rows])


def _groups(config: Config, groups: Sequence[ParameterGroup]) -> str:
    steps = key_steps(config, groups)
    rows = [("group", "tensors", "parameters", "decay", *(f"{step:,}" for step in steps))]
    for group in groups:
        decay = f"{config.optimizer.weight_decay:g}" if group.decay else "0"
        values = (f"{group.multiplier.at(Moment(step)):.4g}" for step in steps)
        rows.append((group.name, str(len(group.parameters)), f"{group.numel:,}", decay, *values))
    rates = Rates(config, groups)
    rows.append(("lr at multiplier 1", "", "", "", *(f"{rates.base(step):.3g}" for step in steps)))
    return table(rows)


def _never_released(config: Config, groups: Sequence[ParameterGroup]) -> list[str]:
    """A warning for the groups that the end of the run finds slowed: a clock in another unit than was meant."""
    last = Moment(config.training.steps - 1)
    slowed = [group.name for group in groups if group.multiplier.at(last) < 1]
    return [f"Not released by the end of the run: {', '.join(slowed)}"] if slowed else []


def key_steps(config: Config, groups: Sequence[ParameterGroup]) -> list[int]:
    """Steps at which the rates are worth showing.

    Args:
        config: The run.
        groups: The optimizer groups.

    Returns:
        The first and the last step and, for each rule, the end of the hold, the middle and the end of the release,
        as far as they lie within the run; ascending.
    """
    last = config.training.steps - 1
    steps = {0, last}
    for group in groups:
        if isinstance(group.multiplier, Timing):
            steps.update(group.multiplier.key_steps())
    return sorted(step for step in steps if step <= last)
