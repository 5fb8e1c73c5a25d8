"""Saving and restoring a run: what every rank writes, and what a checkpoint must fit to be continued from."""

import errno
import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megaqk.config.yaml_text import show
from megaqk.data.identity import check_data_identity
from megaqk.errors import AgreedError, UserError
from megaqk.optim.lengthening import check_length
from megaqk.optim.multipliers import Moment
from megaqk.parallel.world import World
from megaqk.runtime.logs import quiet
from megaqk.training.checkpoint_store import CheckpointStore
from megaqk.training.engine import TrainingEngine
from megaqk.training.progress import Progress

FREE_SECTIONS = ("run", "checkpoint", "logging", "evaluation")
"""Sections that a resumed run may change without a word."""

_FULL_BYTES = 1 << 20
WRITER_ERRORS = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What torch's archive writer says of a full disk, in RuntimeErrors; a broken connection is one too."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a run takes from a checkpoint beside weights and optimizer state.

    Attributes:
        progress: Where the run was.
        changes: The keys that have changed since, in words.
        state: What hooks and multipliers keep.
    """

    progress: Progress
    changes: list[str]
    state: dict[str, Any]


def identity(engine: TrainingEngine) -> dict[str, Any]:
    """What a checkpoint fits only if it is the same: how DeepSpeed's flat tensors are cut up."""
    world = engine.world
    return {
        "topology": {
            **world.sizes._asdict(),
            "layers_per_stage": [last - first for first, last in world.layers_per_stage],
        },
        "vocabulary": asdict(engine.vocabulary),
        "optimizer": engine.implementation,
        "groups": {
            group.name: hashlib.sha256("\n".join(group.parameters).encode()).hexdigest()[:12] for group in engine.groups
        },
    }


def save(
    store: CheckpointStore,
    engine: TrainingEngine,
    progress: Progress,
    *,
    config: dict[str, Any],
    data: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write a checkpoint; every rank must call it.

    Args:
        store: Where to.
        engine: What to save.
        progress: Where the run is.
        config: The resolved configuration, kept in the manifest.
        data: The `data_identity` of the run, kept in the manifest.
        state: What hooks and multipliers keep, kept in the manifest.

    Raises:
        UserError: If it could not be written; the checkpoints before it are as they were.
    """
    world, step = engine.world, progress.step
    world.first_does(store.remove_partial)
    with _disk_errors_named(store, step), quiet():
        engine.engine.save_checkpoint(str(store.folder), tag=store.partial(step).name, save_latest=False)
    manifest = {
        "progress": asdict(progress),
        "config": config,
        "identity": identity(engine),
        "data": data,
        "state": state,
    }

    def commit() -> None:
        with _disk_errors_named(store, step):
            store.commit(step, manifest, engine.engine.checkpoint_engine.files)

    world.first_does(commit)


@contextmanager
def _disk_errors_named(store: CheckpointStore, step: int) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        words = str(error)
        if isinstance(error, RuntimeError) and not any(name in words for name in WRITER_ERRORS):
            raise
        # Which is what torch's writer then says in its own way.
        full = shutil.disk_usage(store.folder).free < _FULL_BYTES
        reason = os.strerror(errno.ENOSPC) if full else (words or type(error).__name__).splitlines()[0]
        raise UserError(f"{store.folder}: step {step} could not be saved ({reason})") from error


def find_latest(store: CheckpointStore, world: World) -> tuple[int, list[str]]:
    """The newest undamaged step, 0 if there is none, and what is wrong with newer ones; every rank must call it.

    One rank lists and all share the reading, so that all resume the same step.

    Raises:
        UserError: If there are checkpoints and none of them is whole.
    """
    problems: list[str] = []

    def problem_of(step: int) -> str | None:
        try:
            store.check_contents(step, share=world.rank, shares=world.size)
        except UserError as error:
            return str(error)
        return None

    for step in reversed(world.first_does(store.steps)):
        found = world.agreed(lambda step=step: problem_of(step))  # type: ignore[misc]
        problem = next((text for text in found if text is not None), None)
        if problem is None:
            return step, problems
        problems.append(problem)
        store.note_damaged(step)
    if problems:
        # Nothing is lost that way: who wants to start over says so by taking them away.
        raise AgreedError(f"{store.folder}: none of its checkpoints is whole; {problems[0]}; mend or remove them")
    return 0, problems


def load(
    store: CheckpointStore, engine: TrainingEngine, step: int, *, config: dict[str, Any], data: dict[str, Any]
) -> Loaded:
    """Restore weights and optimizer state; every rank must call it.

    Learning rates are not restored: they are computed from the configuration before every step.

    Raises:
        UserError: If the checkpoint belongs to another model, topology or data, or holds anything but tensors.
    """

    def compatible() -> dict[str, Any]:
        manifest = store.manifest(step)
        check_compatible(manifest, config, identity(engine), store.path(step))
        check_data_identity(manifest["data"], data, manifest["progress"]["samples"])
        progress = Progress(**manifest["progress"])
        check_length(manifest["config"], engine.config, Moment(progress.step, progress.tokens), engine.inventory)
        return manifest

    manifest = engine.world.each_does(compatible)
    try:
        with quiet(), weights_only():
            engine.engine.load_checkpoint(str(store.folder), tag=f"step-{step}", load_lr_scheduler_states=False)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{store.path(step)}: holds something other than tensors and numbers, which is not loaded since it could "
            "run code; remove it to go on from the checkpoint before it"
        ) from error
    engine.reapply_configuration()
    return Loaded(
        progress=Progress(**manifest["progress"]),
        changes=changed_keys(manifest["config"], config),
        state=manifest["state"],
    )


def check_compatible(manifest: dict[str, Any], config: dict[str, Any], mine: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that this run cannot continue from.

    Args:
        manifest: What was written beside the checkpoint.
        config: The resolved configuration of this run.
        mine: This run's `identity`.
        path: The checkpoint, for the message.

    Raises:
        UserError: Naming the first key that differs.
    """
    keys = [("model", key) for key in config["model"]]
    keys += [("parallel", "zero_stage"), *(("training", key) for key in ("precision", "sequence_length", "seed"))]
    for section, key in keys:
        was, now = manifest["config"].get(section, {}).get(key), config[section][key]
        if was != now:
            raise UserError(f"{section}.{key} = {show(now)}: must be {show(was)}, with which {path} was written")
    written = manifest["identity"]
    for part, advice in (
        ("topology", "resume with the same topology"),
        ("vocabulary", "data.tokenizer: resume with the same tokenizer"),
        ("optimizer", "optimizer.implementation: resume with the same implementation"),
    ):
        if written.get(part) != mine[part]:
            raise UserError(
                f"{path}: was written with {_words(written.get(part))}, this run has {_words(mine[part])}; {advice}"
            )
    was, now = written.get("groups", {}), mine["groups"]
    differing = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if differing:
        raise UserError(
            f"qk_timing: the parameter groups {', '.join(differing)} hold other parameters than in {path}; resume with "
            "rules that act on the same parameters, or start another run.dir"
        )


def _words(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def changed_keys(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys in which a resumed run differs from the checkpoint, as `section.key = now (was then)`."""
    return [
        f"{section}.{key} = {show(value)} (was {show(was.get(section, {}).get(key))})"
        for section, keys in now.items()
        if section not in FREE_SECTIONS and isinstance(keys, dict)
        for key, value in keys.items()
        if was.get(section, {}).get(key) != value
    ]


@contextmanager
def weights_only() -> Iterator[None]:
    """Let torch.load build tensors and DeepSpeed's own few classes only, whoever calls it.

    DeepSpeed unpickles its files without restriction, which would run whatever a checkpoint from elsewhere contains.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed: list[Any] = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
