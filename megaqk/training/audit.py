"""Whether a checkpoint has what the run expects, and whether a loaded run has what it should; else no step is taken."""

from math import prod
from typing import Any

import torch
import torch.distributed as dist

from megaqk.checkpoint.index import WEIGHT, tensor_name
from megaqk.checkpoint.reader import Checkpoint
from megaqk.errors import UserError
from megaqk.training.engine import TrainingEngine
from megaqk.training.fragments import base_optimizer
from megaqk.training.optimizer_state import STEP, expected_shapes, local_shape, named_fragments, scalars


def audit_checkpoint(checkpoint: Checkpoint, engine: TrainingEngine) -> None:
    """Compare what a checkpoint holds with what this run needs, before anything is read.

    Raises:
        UserError: Naming the first tensor or group that differs.
    """
    expected, held = expected_shapes(engine), checkpoint.index.tensors
    vocabulary = {
        tensor_name(kind, name)
        for name, info in engine.infos.items()
        if info.role.init == "vocabulary"
        for kind in (WEIGHT, *engine.owner_of(name).state)
    }
    for name in {**expected, **held}:
        was, now = held.get(name), expected.get(name)
        if name in vocabulary and was and now and was[1:] == now[1:] and was[0] >= engine.vocabulary.tokens:
            continue  # rows of padding come and go with the tensor-parallel size
        if was != now:
            raise UserError(f"{checkpoint.path}: {name} has the shape {_words(was)}, this run needs {_words(now)}")
    progress, values = checkpoint.manifest["progress"], checkpoint.manifest["state"]["optimizer"]
    taken = progress["step"] - progress["skipped"]
    for group in engine.groups:
        if group.name not in values:
            raise UserError(f"{checkpoint.path}: has no group {group.name} in its optimizer's state")
        if (steps := values[group.name].get(STEP, taken)) != taken:
            raise UserError(f"{checkpoint.path}: the group {group.name} has taken {steps} steps, the run {taken}")


def _words(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def audit_loaded(engine: TrainingEngine, values: dict[str, Any]) -> None:
    """Look at what the optimizer of a loaded run really has; every rank must call it.

    Raises:
        UserError: A parameter is in another group than planned, not all of it is updated, its state is missing, or a
            group's counts are not `values`, those of the checkpoint.
    """
    optimizer = engine.engine.optimizer
    held = list(named_fragments(engine))
    counts = dict.fromkeys(engine.parameters, 0)
    for name, fragment in held:
        counts[name] += fragment.end - fragment.first
    # Before anything is refused, since every rank must come here.
    updated = torch.tensor(list(counts.values()), device=engine.world.device)
    dist.all_reduce(updated, group=engine.world.data_group)
    for name, fragment in held:
        if (planned := engine.group_of[name].name) != fragment.group:
            raise UserError(f"{name}: is in the optimizer's group {fragment.group}, must be in {planned}")
        state = base_optimizer(optimizer).state[fragment.master]
        for kind in engine.owner_of(name).state:
            if kind not in state or state[kind].shape != fragment.master.shape:
                raise UserError(f"{name}: has no {kind} after the checkpoint was loaded")
    # Without ZeRO every data-parallel rank updates all of it.
    replicas = 1 if hasattr(optimizer, "optimizer") else engine.world.data
    for (name, parameter), count in zip(engine.parameters.items(), updated.tolist(), strict=True):
        whole = prod(local_shape(parameter, engine)) * replicas
        if count != whole:
            raise UserError(f"{name}: {count} elements are updated, must be {whole}")
    if (found := scalars(engine)) != values:
        raise UserError(f"the optimizer's groups have the counts {found}, must have {values}")
