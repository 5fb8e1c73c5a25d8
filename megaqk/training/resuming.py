"""Going on from a checkpoint: the newest that is whole, on whatever topology there is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.damage import DamagedError
from megaqk.checkpoint.reader import Checkpoint, Wanted, open_step
from megaqk.checkpoint.store import AVERAGED, CheckpointStore
from megaqk.data.identity import check_data_identity
from megaqk.errors import AgreedError, UserError
from megaqk.optim.lengthening import check_length
from megaqk.optim.multipliers import Moment
from megaqk.training.audit import audit_checkpoint, audit_loaded
from megaqk.training.compatibility import changed_keys, check_compatible, identity
from megaqk.training.engine import TrainingEngine
from megaqk.training.fragments import publish
from megaqk.training.optimizer_state import create_state, held_parts, restore_loss_scale
from megaqk.training.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a run takes from a checkpoint beside weights and optimizer state.

    Attributes:
        progress: Where the run was.
        changes: The keys that have changed since, in words.
        state: What hooks and multipliers keep.
        damaged: What is wrong with newer checkpoints, which have been set aside.
    """

    progress: Progress
    changes: list[str]
    state: dict[str, Any]
    damaged: list[str]


def load_newest(
    store: CheckpointStore,
    engine: TrainingEngine,
    *,
    config: dict[str, Any],
    data: dict[str, Any],
    before: int | None = None,
) -> Loaded | None:
    """Load the newest checkpoint that is whole; every rank must call it.

    One rank lists, so that all load the same. Each reads and checks what it needs, which together is everything: damage
    shows while a checkpoint is read, and then all load the one before it.

    Args:
        store: The checkpoints.
        engine: What takes their state.
        config: The resolved configuration of this run.
        data: Its `data_identity`.
        before: Load one of an earlier step.

    Returns:
        None if there is none.

    Raises:
        UserError: It belongs to another model or data, or there are checkpoints and none of them is whole.
    """
    world = engine.world
    steps, aside = world.first_does(lambda: (store.steps(), store.aside()))
    damaged: list[tuple[int, str]] = []
    for step in (step for step in reversed(steps) if before is None or step < before):
        opened: list[Checkpoint] = []
        found = world.agreed(lambda step=step, opened=opened: _damage(store, engine, step, config, data, opened))  # type: ignore[misc]
        problem = next((text for text in found if text is not None), None)
        if problem is not None:
            damaged.append((step, problem))
            continue
        manifest = opened[0].manifest
        publish(engine.engine.optimizer)
        world.agreed(lambda manifest=manifest: audit_loaded(engine, manifest["state"]["optimizer"]))  # type: ignore[misc]
        paths = world.first_does(lambda: [store.set_aside(step) for step, _ in damaged])
        return Loaded(
            progress=Progress(**manifest["progress"]),
            changes=changed_keys(manifest["config"], config),
            state=manifest["state"],
            damaged=[f"{text}; kept as {path.name}" for (_, text), path in zip(damaged, paths, strict=True)],
        )
    if damaged or (aside and before is None):
        # Nothing is lost that way: who wants to start over says so by taking them away.
        what = damaged[0][1] if damaged else f"{aside[0].name} was set aside"
        raise AgreedError(f"{store.folder}: none of its checkpoints is whole; {what}; mend or remove them")
    return None


def _damage(
    store: CheckpointStore,
    engine: TrainingEngine,
    step: int,
    config: dict[str, Any],
    data: dict[str, Any],
    opened: list[Checkpoint],
) -> str | None:
    """Load a checkpoint on this rank, into `opened` too, or say what of it is damaged."""
    try:
        checkpoint = open_step(store, step)
        manifest = checkpoint.manifest
        if AVERAGED in manifest:
            raise UserError(
                f"{checkpoint.path}: is an average of {len(manifest[AVERAGED])} checkpoints, without optimizer state: "
                "a run goes on from what a run has saved; move it out of the run's folder"
            )
        check_compatible(manifest, config, identity(engine), checkpoint.path)
        check_data_identity(manifest["data"], data, manifest["progress"]["samples"])
        progress = Progress(**manifest["progress"])
        check_length(manifest["config"], engine.config, Moment(progress.step, progress.tokens), engine.inventory)
        audit_checkpoint(checkpoint, engine)
        create_state(engine, manifest["state"]["optimizer"])
        checkpoint.read(list(_wanted(checkpoint, engine)))
        restore_loss_scale(engine, manifest["state"]["loss_scale"])
    except DamagedError as error:
        return str(error)
    opened.append(checkpoint)
    return None


def _wanted(checkpoint: Checkpoint, engine: TrainingEngine) -> Iterator[Wanted]:
    for part in held_parts(engine):
        shape = checkpoint.index.tensors[part.tensor]
        # Rows that pad the vocabulary, of which the other topology may have had fewer, are zero and stay so.
        if (known := part.box.intersection(Box.whole(shape))) is not None:
            yield Wanted(part.tensor, known, known.within(part.box, part.local.view(part.box.shape)))
