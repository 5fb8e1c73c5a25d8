"""The optimizer's state by global name: what this rank writes of it, what it reads, and what is no tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaqk.checkpoint.boxes import Box, boxes_of_range
from megaqk.checkpoint.index import PIECE_ELEMENTS, WEIGHT, tensor_name
from megaqk.model.decoder import stage_bounds
from megaqk.parallel.sharding import sharding_of
from megaqk.training.engine import TrainingEngine
from megaqk.training.fragments import Fragment, base_optimizer, fragments, masters

STEP = "step"
"""How optimizers call the number of steps they have taken, in the state of a tensor or, Apex, in the group."""


@dataclass(frozen=True)
class Part:
    """A rectangle of a global tensor that is contiguous on this rank.

    Attributes:
        tensor: See `tensor_name`.
        box: The rectangle.
        local: Its elements, flat; a view of what the optimizer has.
    """

    tensor: str
    box: Box
    local: Tensor


def named_fragments(engine: TrainingEngine) -> Iterator[tuple[str, Fragment]]:
    """What this rank updates, with global names; placeholders have none."""
    names = {id(parameter): name for name, parameter in engine.parameters.items()}
    for fragment in fragments(engine.engine.optimizer):
        if name := names.get(id(fragment.parameter)):
            yield name, fragment


def written_parts(engine: TrainingEngine) -> Iterator[Part]:
    """What this rank writes: each element of the model and of the optimizer's state is written by one rank."""
    for name, fragment in named_fragments(engine):
        yield from _parts(fragment, name, *owned_range(fragment, name, engine), engine)


def held_parts(engine: TrainingEngine) -> Iterator[Part]:
    """What this rank must read: everything that its optimizer updates."""
    for name, fragment in named_fragments(engine):
        yield from _parts(fragment, name, fragment.first, fragment.end, engine)


def owned_range(fragment: Fragment, name: str, engine: TrainingEngine) -> tuple[int, int]:
    """The part of a fragment that is this rank's to write or to count, as (first, end) of the flattened shard.

    It is empty where others have the same: over all ranks each element of the model falls into one such range.
    """
    world = engine.world
    first, end = fragment.first, fragment.end
    elsewhere = sharding_of(fragment.parameter).dim is None and world.coordinate.tensor > 0
    bounds = stage_bounds(world.layers_per_stage)
    # A tied embedding is on two stages, and the first of them writes it.
    if elsewhere or engine.infos[name].places[0] < bounds[world.coordinate.pipeline]:
        return first, first
    if fragment.master is fragment.parameter:  # without ZeRO, where every data-parallel rank has all of it
        size = -(-(end - first) // world.data)
        first = min(end, first + world.coordinate.data * size)
        end = min(end, first + size)
    return first, end


def elements_to_write(engine: TrainingEngine) -> int:
    """How many `written_parts` have together; known before the first step, which makes the optimizer's state."""
    count = 0
    for name, fragment in named_fragments(engine):
        first, end = owned_range(fragment, name, engine)
        count += (end - first) * (1 + len(engine.owner_of(name).state))
    return count


def _parts(fragment: Fragment, name: str, first: int, end: int, engine: TrainingEngine) -> Iterator[Part]:
    owner = engine.owner_of(name)
    state = base_optimizer(engine.engine.optimizer).state[fragment.master]
    kinds = {WEIGHT: fragment.master, **{kind: state[kind] for kind in owner.state}}
    shape = local_shape(fragment.parameter, engine)
    dim = sharding_of(fragment.parameter).dim
    boxes = boxes_of_range(shape, first, end, at_most=PIECE_ELEMENTS)
    for kind, tensor in kinds.items():
        flat, at = fragment.of(tensor), first - fragment.first
        for box in boxes:
            place = box if dim is None else box.shifted(dim, engine.world.tp.rank * shape[dim])
            yield Part(tensor_name(kind, name), place, flat[at : at + box.numel])
            at += box.numel


def expected_shapes(engine: TrainingEngine) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint of this run, whoever holds what."""
    return {
        tensor_name(kind, name): info.shape
        for name, info in engine.infos.items()
        for kind in (WEIGHT, *engine.owner_of(name).state)
    }


def local_shape(parameter: nn.Parameter, engine: TrainingEngine) -> tuple[int, ...]:
    """Shape of this rank's tensor-parallel shard of a parameter, whatever ZeRO-3 has left of it."""
    sharding = sharding_of(parameter)
    return tuple(
        engine.world.tp.share(size) if dim == sharding.dim else size for dim, size in enumerate(sharding.shape)
    )


def scalars(engine: TrainingEngine) -> dict[str, dict[str, float]]:
    """What the optimizer keeps by group that is no tensor of elements, its count of steps above all.

    Returns:
        By group: an int where it keeps an int, a float where it keeps a tensor; `group.step` where, as in Apex, the
        group has it.

    Raises:
        RuntimeError: Tensors of one group have taken different numbers of steps.
    """
    base = base_optimizer(engine.engine.optimizer)
    found: dict[str, dict[str, float]] = {group["name"]: {} for group in base.param_groups}
    for name, master in masters(engine.engine.optimizer):
        state = base.state.get(master, {})
        values = {
            key: float(value) if isinstance(value, Tensor) else value
            for key, value in state.items()
            if not isinstance(value, Tensor) or value.dim() == 0
        }
        if values and found[name] not in ({}, values):
            raise RuntimeError(f"parts of the group {name} have the states {found[name]} and {values}")
        found[name] = values or found[name]
    for group in base.param_groups:
        if STEP in group:
            found[group["name"]][f"group.{STEP}"] = group[STEP]
    return found


@torch.no_grad()
def create_state(engine: TrainingEngine, values: Mapping[str, Mapping[str, float]]) -> None:
    """Give every tensor that the optimizer steps the state that a first step would, and the values of `scalars`."""
    base = base_optimizer(engine.engine.optimizer)
    groups = {group["name"]: group for group in base.param_groups}
    for name, master in masters(engine.engine.optimizer):
        group, state = groups[name], base.state[master]
        for kind in engine.owners[group["optimizer"]].state:
            state.setdefault(kind, torch.zeros_like(master, requires_grad=False))
        for key, value in values[name].items():
            if key == f"group.{STEP}":
                group[STEP] = value
            elif isinstance(state.get(key), Tensor):
                state[key].fill_(value)
            elif type(value) is int:
                state[key] = value
            else:
                # As torch does for the count of steps.
                on_device = group.get("fused") or group.get("capturable")
                state[key] = torch.tensor(value, device=master.device if on_device else "cpu")


def loss_scale(engine: TrainingEngine) -> dict[str, float]:
    """The numbers of fp16's dynamic loss scale; empty in other precisions."""
    if engine.config.training.precision != "fp16":
        return {}
    return {
        key: value for key, value in vars(engine.engine.optimizer.loss_scaler).items() if isinstance(value, int | float)
    }


def restore_loss_scale(engine: TrainingEngine, numbers: Mapping[str, float]) -> None:
    """Go on with the `loss_scale` of a checkpoint, where both it and the run are fp16."""
    if engine.config.training.precision == "fp16":
        vars(engine.engine.optimizer.loss_scaler).update(numbers)
