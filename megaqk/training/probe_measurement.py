"""One look at the whole model, whatever ranks hold it."""

from collections.abc import Sequence
from math import prod
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from megaqk.model.batch import Stream
from megaqk.parallel.cross_entropy import IGNORE_INDEX
from megaqk.probing.block_statistics import BlockStatistics, EnergyKind
from megaqk.probing.spectral import qk_singular_values
from megaqk.runtime.pulse import Pulse
from megaqk.training.engine import TrainingEngine
from megaqk.training.step_watch import GRADIENT, UPDATE, WEIGHT, Part, StepWatch
from megaqk.training.zero3 import gathered_parameter

BY_HEAD = ("attention_entropy", "attention_max_probability", "logit_std", "logit_max")


@torch.no_grad()
def measure(
    engine: TrainingEngine, batches: Sequence[tuple[Stream, Tensor]], watch: StepWatch | None, pulse: Pulse
) -> dict[str, Any] | None:
    """Measure what docs/probes.md lists; every rank must call it.

    Each rank writes what it has into a table of the whole model, and a sum over all ranks completes it: one collective,
    and one copy to the host, on rank 0 alone.

    Args:
        engine: The model.
        batches: Inputs and labels, the same on every data-parallel rank.
        watch: What it saw of the step just taken; None: no step has been taken.
        pulse: Beats with each batch.

    Returns:
        The record without its step and tokens, on rank 0; None elsewhere.
    """
    world, model = engine.world, engine.config.model
    layers = (model.num_layers,)
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("loss", "norm"), ()),
        **dict.fromkeys((*get_args(EnergyKind), "query_norm", "key_norm"), layers),
        **dict.fromkeys((*BY_HEAD, "qk_singular_value"), (*layers, model.num_heads)),
        "squares": tuple(watch.squares.shape) if watch is not None else (0,),
    }
    flat = torch.zeros(sum(map(prod, shapes.values())), dtype=torch.float64, device=world.device)
    table = _views(flat, shapes)
    statistics = BlockStatistics()
    with statistics.watching(engine.context.taps):
        total = engine.evaluate(pulse.beats(batches), len(batches))
    heads = model.num_heads // world.tensor
    mine = slice(world.tp.rank * heads, (world.tp.rank + 1) * heads)
    _measure_weights(engine, table, mine)
    if watch is not None:
        table["squares"].copy_(watch.squares)
    if world.rank == 0:
        scored = sum(int((labels != IGNORE_INDEX).sum()) for _, labels in batches)
        table["loss"].copy_(total / (world.data * max(scored, 1)))
        if watch is not None:
            table["norm"].fill_(engine.engine.get_global_grad_norm())
    if world.coordinate.data == 0:  # the others have the same
        for layer, attention in statistics.attention.items():
            for name, values in attention.result().items():
                table[name][layer, mine] = values
        if world.tp.rank == 0 or world.tp.sequence:
            for (kind, layer), energy in statistics.energies.items():
                table[kind][layer] = energy
    dist.all_reduce(flat)
    if world.rank:
        return None
    tokens = sum(labels.numel() for _, labels in batches)
    return _record(engine, _views(flat.cpu(), shapes), tokens, watch)


def _views(flat: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    parts = torch.split(flat, [prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _measure_weights(engine: TrainingEngine, table: dict[str, Tensor], heads: slice) -> None:
    """Fill in what the query and key weights of this rank's layers and heads say."""
    matrices = {
        (info.role.projection, info.role.layer): engine.parameters[info.name]
        for info in engine.inventory
        if info.name in engine.parameters and len(info.shape) == 2
    }
    for layer in range(engine.config.model.num_layers):
        if ("query", layer) not in matrices:
            continue
        query, key = matrices["query", layer], matrices["key", layer]
        with gathered_parameter(query), gathered_parameter(key):
            if engine.world.coordinate.data == 0:
                table["query_norm"][layer] = query.double().square().sum()
                table["key_norm"][layer] = key.double().square().sum()
                head_size = engine.config.model.head_size
                table["qk_singular_value"][layer, heads] = qk_singular_values(query, key, head_size)


def _record(engine: TrainingEngine, table: dict[str, Tensor], tokens: int, watch: StepWatch | None) -> dict[str, Any]:
    record = {
        "loss": table["loss"],
        **{name: table[name] for name in BY_HEAD},
        "attention_write_energy": table["attention_write"] / table["attention_residual"],
        "ffn_write_energy": table["ffn_write"] / table["ffn_residual"],
        "residual_energy": table["attention_residual"] / (tokens * engine.config.model.hidden_size),
        "query_norm": table["query_norm"].sqrt(),
        "key_norm": table["key_norm"].sqrt(),
        "qk_singular_value": table["qk_singular_value"],
    }
    numbers: dict[str, Any] = {name: value.tolist() for name, value in record.items()}
    if watch is not None:
        clip = engine.config.optimizer.grad_clip
        # What the optimizer was given had been multiplied by min(1, clip / (norm + 1e-6)).
        factor = max(1.0, (table["norm"].item() + 1e-6) / clip) if clip else 1.0
        squares = table["squares"]
        numbers["gradient_norm"] = _by_part(watch.parts, squares[GRADIENT].sqrt() * factor)
        numbers["update_ratio"] = _by_part(watch.parts, (squares[UPDATE] / squares[WEIGHT]).sqrt())
    return numbers


def _by_part(parts: Sequence[Part], values: Tensor) -> dict[str, Any]:
    """A list by layer for each projection of the blocks, and a number for what is outside them."""
    found: dict[str, Any] = {}
    for (name, layer), value in zip(parts, values.tolist(), strict=True):
        if layer is None:
            found[name] = value
        else:
            found.setdefault(name, []).append(value)
    return found
