"""What the `checkpoint` commands do."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from megaqk.checkpoint.reader import Checkpoint
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore
from megaqk.errors import UserError
from megaqk.runtime.locks import try_lock

_TITLES = ("step", "tokens", "MiB", "valid loss", "written by", "")


def _open(run_dir: Path) -> tuple[CheckpointStore, dict[int, Checkpoint | UserError]]:
    """The store of a run, and each of its checkpoints or what is wrong with it; kept as the newest says."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"RUN_DIR = {run_dir}: has no folder checkpoints; must be the run.dir of a run")
    store, opened = CheckpointStore(folder, Retention(newest=1)), dict[int, Checkpoint | UserError]()
    for step in store.steps():
        try:
            opened[step] = Checkpoint(store.path(step))
        except UserError as error:
            opened[step] = error
    whole = [one for one in opened.values() if isinstance(one, Checkpoint)]
    if whole:
        keep = whole[-1].manifest["config"]["checkpoint"]
        store.retention = Retention(newest=keep["keep"], every=keep["keep_every"], best=keep["keep_best"])
    return store, opened


def show(arguments: argparse.Namespace) -> None:
    """Print the table of `list`."""
    store, opened = _open(arguments.run_dir)
    reasons, rows = store.kept(), [_TITLES]
    for step, one in opened.items():
        if isinstance(one, UserError):
            rows.append((str(step), "-", "-", "-", "-", str(one)))
            continue
        progress, loss = one.manifest["progress"], one.manifest["valid_loss"]
        size = sum(one.manifest["files"].values()) / (1 << 20)
        validated = "-" if loss is None else f"{loss:.4f}"
        rows.append(
            (str(step), f"{progress['tokens']:,}", f"{size:,.1f}", validated, _writer(one.manifest), reasons[step])
        )
    rows += [(path.name.removeprefix("step-"), "-", "-", "-", "-", "set aside") for path in store.aside()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _writer(manifest: dict[str, Any]) -> str:
    parallel = manifest["config"]["parallel"]
    axes = f"tensor {parallel['tensor']} x pipeline {parallel['pipeline']} of {len(manifest['files']) - 1} ranks"
    return f"{axes}, ZeRO-{parallel['zero_stage']}, {manifest['config']['training']['precision']}"


def verify(arguments: argparse.Namespace) -> None:
    """Read everything.

    Raises:
        UserError: A checkpoint is damaged; each such has been said.
    """
    store, opened = _open(arguments.run_dir)
    steps = list(opened) if arguments.step is None else [arguments.step]
    if not set(steps) <= opened.keys() or not steps:
        raise UserError(f"{store.folder}: has no step {arguments.step or 'at all'}; has {list(opened)}")
    damaged = []
    for step in steps:
        try:
            if isinstance(one := opened[step], UserError):
                raise one
            one.verify()
            print(f"step {step}: whole")
        except UserError as error:
            print(f"step {step}: {error}")
            damaged.append(step)
    if damaged:
        raise UserError(f"{store.folder}: damaged: step {', '.join(map(str, damaged))}")


def prune(arguments: argparse.Namespace) -> None:
    """Remove what is not to be kept.

    Raises:
        UserError: A number makes no sense, or a job is writing there.
    """
    store, _ = _open(arguments.run_dir)
    keep = store.retention
    values = {}
    for key, default in (("keep", keep.newest), ("keep_every", keep.every), ("keep_best", keep.best)):
        given = getattr(arguments, key)
        values[key] = default if given is None else given
        least = 1 if key == "keep" else 0
        if values[key] < least:
            raise UserError(f"--{key.replace('_', '-')} = {given}: must be at least {least}")
    store.retention = Retention(newest=values["keep"], every=values["keep_every"], best=values["keep_best"])
    doomed = [path for path in map(store.path, store.steps()) if not store.kept()[int(path.name[5:])]]
    doomed += store.aside() if arguments.aside else []
    lock = None if arguments.dry_run else try_lock(arguments.run_dir / ".lock")
    if lock is None and not arguments.dry_run:
        raise UserError(
            f"RUN_DIR = {arguments.run_dir}: a job is writing to it, which prunes it itself; wait for its end"
        )
    for path in doomed:
        print(f"{'would remove' if arguments.dry_run else 'removing'} {path}")
    if lock is not None:
        store.prune()
        for path in store.aside() if arguments.aside else []:
            shutil.rmtree(path)
        lock.release()
