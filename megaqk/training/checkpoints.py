"""Checkpoints that are either complete or not there.

DeepSpeed writes into `step-<n>.partial`; when all ranks are done, rank 0 adds a manifest with the size of every
file, syncs and renames. A process killed at any moment thus leaves the previous checkpoint as it was.
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megaqk.data.files import sync_directory, sync_file
from megaqk.errors import UserError
from megaqk.training.engine import TrainingEngine
from megaqk.training.quiet import quiet

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        step: Optimizer steps taken.
        samples: Samples of the training stream consumed.
        tokens: Tokens learned from.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0


class CheckpointStore:
    """The checkpoints of a run, as a folder.

    Args:
        folder: `<run.dir>/checkpoints`.
        keep: Newest checkpoints kept.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def path(self, step: int) -> Path:
        """Folder of a complete checkpoint."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """Steps with a manifest, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match and (self.folder / match[0] / MANIFEST).is_file())

    def manifest(self, step: int) -> dict[str, Any]:
        """What was written beside the checkpoint of a step.

        Raises:
            UserError: If the manifest cannot be read, or a file is missing or has another size than when written.
        """
        path = self.path(step)
        try:
            manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
            for name, size in manifest["files"].items():
                actual = (path / name).stat().st_size
                if actual != size:
                    raise UserError(f"{path / name}: {actual} bytes, but {size} were written")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged checkpoint ({error})") from error
        return manifest

    def latest(self) -> tuple[int, list[str]]:
        """Newest undamaged step, 0 if there is none, and what is wrong with the newer ones."""
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                self.manifest(step)
            except UserError as problem:
                problems.append(str(problem))
            else:
                return step, problems
        return 0, problems

    def commit(self, step: int, manifest: dict[str, Any]) -> None:
        """Turn the partial folder of a step into a checkpoint and remove those beyond `keep`."""
        partial = self.folder / f"step-{step}{PARTIAL}"
        files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        (partial / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1))
        for name in (*files, MANIFEST):
            sync_file(partial / name)
        sync_directory(partial)
        final = self.path(step)
        if final.exists():  # a damaged one that the run went back behind
            shutil.rmtree(final)
        partial.rename(final)
        sync_directory(self.folder)
        for old in [s for s in self.steps() if s < step][: -self._keep + 1 or None]:
            shutil.rmtree(self.path(old))

    def remove_partial(self) -> None:
        """Remove what killed processes left."""
        for entry in self.folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(entry)


def save(store: CheckpointStore, engine: TrainingEngine, progress: Progress, config: dict[str, Any]) -> None:
    """Write a checkpoint; every rank must call it.

    Args:
        store: Where to.
        engine: What to save.
        progress: Where the run is.
        config: The resolved configuration, kept in the manifest.
    """
    if engine.process.rank == 0:
        store.remove_partial()
    dist.barrier()
    try:
        with quiet():
            engine.engine.save_checkpoint(str(store.folder), tag=f"step-{progress.step}{PARTIAL}", save_latest=False)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its archive writer.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{store.folder}: step {progress.step} could not be saved ({reason})") from error
    dist.barrier()
    if engine.process.rank == 0:
        store.commit(progress.step, {"progress": asdict(progress), "config": config, **identity(engine)})
    dist.barrier()


def identity(engine: TrainingEngine) -> dict[str, Any]:
    """What a checkpoint fits only if it is the same."""
    return {"dims": asdict(engine.dims), "vocabulary": asdict(engine.vocabulary)}


def load(store: CheckpointStore, engine: TrainingEngine, step: int, config: dict[str, Any]) -> Progress:
    """Restore weights and optimizer state; every rank must call it.

    Learning rates are not restored: they are computed from the configuration before every step.

    Raises:
        UserError: If the checkpoint belongs to another model or topology, or holds anything but data.
    """
    manifest = store.manifest(step)
    check_compatible(manifest, config, identity(engine), store.path(step))
    try:
        with quiet(), weights_only():
            engine.engine.load_checkpoint(str(store.folder), tag=f"step-{step}", load_lr_scheduler_states=False)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{store.path(step)}: holds something other than tensors and numbers, which is not loaded since it could "
            "run code; remove it to go on from the checkpoint before it"
        ) from error
    engine.reapply_configuration()
    return Progress(**manifest["progress"])


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
    for key, advice in (("dims", "topology"), ("vocabulary", "tokenizer")):
        if manifest[key] != mine[key]:
            was, now = (" x ".join(f"{k} {v}" for k, v in d[key].items()) for d in (manifest, mine))
            raise UserError(f"{path}: was written with {was}, this run has {now}; resume with the same {advice}")
    fixed = [("parallel", key) for key in ("zero_stage", "layers_per_stage")]
    fixed += [("model", key) for key in config["model"]]
    fixed += [("training", key) for key in ("precision", "sequence_length", "seed")]
    for section, key in fixed:
        was, now = manifest["config"][section].get(key), config[section][key]
        if was != now:
            raise UserError(f"{section}.{key} = {now}: must be {was}, with which {path} was written")


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
