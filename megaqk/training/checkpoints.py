"""Saving and restoring a run: what every rank writes, and what a checkpoint must fit to be continued from."""

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megaqk.data.identity import check_data_identity
from megaqk.errors import UserError
from megaqk.runtime.device import ProcessInfo
from megaqk.runtime.files import sha256_of
from megaqk.runtime.quiet import quiet
from megaqk.training.checkpoint_store import CheckpointStore, Progress
from megaqk.training.engine import TrainingEngine

FIXED: tuple[tuple[str, str, str], ...] = (
    ("topology", "", "resume with the same topology"),
    ("vocabulary", "data.tokenizer", "resume with the same tokenizer"),
    ("optimizer", "optimizer.implementation", "resume with the same implementation"),
    ("groups", "qk_timing", "resume with rules that act on the same parameters, or start another run.dir"),
)
"""Parts of the identity, the key that decides each, and what to do where it differs."""

FREE_SECTIONS = ("run", "checkpoint", "logging", "evaluation")
"""Sections that a resumed run may change without a word."""


def identity(engine: TrainingEngine) -> dict[str, Any]:
    """What a checkpoint fits only if it is the same: how DeepSpeed's flat tensors are cut up."""
    return {
        "topology": asdict(engine.dims),
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
) -> None:
    """Write a checkpoint; every rank must call it.

    Args:
        store: Where to.
        engine: What to save.
        progress: Where the run is.
        config: The resolved configuration, kept in the manifest.
        data: The `data_identity` of the run, kept in the manifest.

    Raises:
        UserError: If it could not be written; the checkpoints before it are as they were.
    """
    process = engine.process
    if process.rank == 0:
        store.remove_partial()
    dist.barrier()
    try:
        with quiet():
            engine.engine.save_checkpoint(str(store.folder), tag=store.partial(progress.step).name, save_latest=False)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its archive writer.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{store.folder}: step {progress.step} could not be saved ({reason})") from error
    dist.barrier()
    mine = {
        name: sha256_of(store.partial(progress.step) / name)
        for name in store.partial_files(progress.step)[process.rank :: process.world_size]
    }
    shares: list[Any] = [None] * process.world_size
    dist.all_gather_object(shares, mine)
    if process.rank == 0:
        digests = {name: digest for share in shares for name, digest in share.items()}
        manifest = {"progress": asdict(progress), "config": config, "identity": identity(engine), "data": data}
        store.commit(progress.step, manifest, digests)
    dist.barrier()


def find_latest(store: CheckpointStore, process: ProcessInfo) -> tuple[int, list[str]]:
    """`CheckpointStore.latest` with the reading divided over the ranks; every rank must call it."""

    def check(step: int) -> None:
        problem = None
        try:
            store.check_contents(step, share=process.rank, shares=process.world_size)
        except UserError as error:
            problem = str(error)
        found: list[Any] = [None] * process.world_size
        dist.all_gather_object(found, problem)
        for text in found:
            if text is not None:
                raise UserError(text)

    return store.latest(check)


def load(
    store: CheckpointStore, engine: TrainingEngine, step: int, *, config: dict[str, Any], data: dict[str, Any]
) -> tuple[Progress, list[str]]:
    """Restore weights and optimizer state; every rank must call it.

    Learning rates are not restored: they are computed from the configuration before every step.

    Returns:
        Where the run was, and the keys that have changed since, in words.

    Raises:
        UserError: If the checkpoint belongs to another model, topology or data, or holds anything but tensors.
    """
    manifest = store.manifest(step)
    progress = Progress(**manifest["progress"])
    check_compatible(manifest, config, identity(engine), store.path(step))
    check_data_identity(manifest["data"], data, progress.samples)
    try:
        with quiet(), weights_only():
            engine.engine.load_checkpoint(str(store.folder), tag=f"step-{step}", load_lr_scheduler_states=False)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{store.path(step)}: holds something other than tensors and numbers, which is not loaded since it could "
            "run code; remove it to go on from the checkpoint before it"
        ) from error
    engine.reapply_configuration()
    return progress, changed_keys(manifest["config"], config)


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
    keys += [("parallel", "zero_stage"), ("parallel", "layers_per_stage")]
    keys += [("training", key) for key in ("precision", "sequence_length", "seed")]
    for section, key in keys:
        was, now = manifest["config"].get(section, {}).get(key), config[section][key]
        if was != now:
            raise UserError(f"{section}.{key} = {now}: must be {was}, with which {path} was written")
    for part, key, advice in FIXED:
        was, now = manifest["identity"].get(part), mine[part]
        if was != now:
            name = f"{key}: " if key else ""
            raise UserError(f"{name}{path} was written with {_words(was)}, this run has {_words(now)}; {advice}")


def _words(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def changed_keys(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys in which a resumed run differs from the checkpoint, as `section.key = now (was then)`."""
    return [
        f"{section}.{key} = {value} (was {was.get(section, {}).get(key)})"
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
