"""What the `checkpoint` commands do."""

import argparse
from pathlib import Path
from typing import Any

from megaqk.checkpoint.damage import DamagedError
from megaqk.checkpoint.reader import Checkpoint, open_step
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import AVERAGED, CheckpointStore
from megaqk.errors import UserError
from megaqk.runtime.locks import try_lock
from megaqk.runtime.text_table import table

_TITLES = ("step", "tokens", "MiB", "valid loss", "written by", "")


def _open(run_dir: Path) -> tuple[CheckpointStore, dict[int, Checkpoint | UserError]]:
    """The store of a run, and each of its checkpoints or what is wrong with it; kept as the newest says."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"RUN_DIR = {run_dir}: has no folder checkpoints; must be the run.dir of a run")
    store, opened = CheckpointStore(folder, Retention(newest=1)), dict[int, Checkpoint | UserError]()
    for step in store.steps():
        try:
            opened[step] = open_step(store, step)
        except UserError as error:
            if store.path(step).exists():  # else the run has removed it meanwhile
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
        validated, reason = "-" if loss is None else f"{loss:.4f}", reasons.get(step, "")
        rows.append((str(step), f"{progress['tokens']:,}", f"{size:,.1f}", validated, _writer(one.manifest), reason))
    rows += [(path.name.removeprefix("step-"), "-", "-", "-", "-", "set aside") for path in store.aside()]
    print(table(rows))


def _writer(manifest: dict[str, Any]) -> str:
    if AVERAGED in manifest:
        return f"average of {len(manifest[AVERAGED])}"
    parallel = manifest["config"]["parallel"]
    axes = f"tensor {parallel['tensor']} x pipeline {parallel['pipeline']} of {len(manifest['files']) - 1} ranks"
    return f"{axes}, ZeRO-{parallel['zero_stage']}, {manifest['config']['training']['precision']}"


def verify(arguments: argparse.Namespace) -> None:
    """Read everything.

    Raises:
        UserError: A checkpoint cannot be used; each such has been said.
    """
    store, opened = _open(arguments.run_dir)
    steps = list(opened) if arguments.step is None else [arguments.step]
    if not steps or not set(steps) <= opened.keys():
        raise UserError(f"{store.folder}: has no step {'at all' if not steps else steps[0]}; has {list(opened)}")
    useless = [step for step in steps if not _whole(store, step, opened[step])]
    if useless:
        raise UserError(f"{store.folder}: step {', '.join(map(str, useless))} cannot be used")


def _whole(store: CheckpointStore, step: int, one: Checkpoint | UserError) -> bool:
    """Whether a checkpoint is whole to its last byte, or has been removed meanwhile; says it."""
    try:
        if isinstance(one, UserError):
            raise one
        one.verify()
        print(f"step {step}: whole")
    except UserError as error:
        if store.path(step).exists():
            print(f"step {step}: {error}")
            return False
        print(f"step {step}: removed meanwhile")
    return True


def prune(arguments: argparse.Namespace) -> None:
    """Remove what is not to be kept, once what is kept has been read.

    Raises:
        UserError: A number makes no sense, a job is writing there, or one that would be kept is damaged.
    """
    store, _ = _open(arguments.run_dir)
    numbers = {}
    for key, given, least, default in (
        ("--keep", arguments.keep, 1, store.retention.newest),
        ("--keep-every", arguments.keep_every, 0, store.retention.every),
        ("--keep-best", arguments.keep_best, 0, store.retention.best),
    ):
        numbers[key] = default if given is None else given
        if numbers[key] < least:
            raise UserError(f"{key} = {given}: must be at least {least}")
    store.retention = Retention(newest=numbers["--keep"], every=numbers["--keep-every"], best=numbers["--keep-best"])
    lock = try_lock(arguments.run_dir / ".lock")
    if lock is None:
        raise UserError(f"RUN_DIR = {arguments.run_dir}: a job is writing to it, which prunes it itself; wait for it")
    try:
        kept = store.kept()
        for step in (step for step, reason in kept.items() if reason):
            try:
                open_step(store, step).verify()
            except DamagedError as error:
                raise UserError(f"{error}; nothing was removed: move or remove {store.path(step)} first") from error
        doomed = [store.path(step) for step, reason in kept.items() if not reason]
        for path in [*doomed, *(store.aside() if arguments.aside else [])]:
            print(f"{'would remove' if arguments.dry_run else 'removing'} {path}")
            if not arguments.dry_run:
                store.remove(path)
    finally:
        lock.release()
