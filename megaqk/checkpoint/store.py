"""The checkpoints of a run as a folder: each is either complete or not there.

Ranks write into `step-<n>.partial`; when all are done, the first one adds index and manifest and renames. A process
killed at any moment thus leaves the checkpoints before it as they were. What is damaged, or what the run went back
behind, is set aside under another name, which no start takes.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from megaqk.checkpoint.damage import DamagedError, damage_named
from megaqk.checkpoint.index import Index
from megaqk.checkpoint.retention import Retention
from megaqk.errors import UserError
from megaqk.runtime.files import sync_directory, sync_file

logger = logging.getLogger("megaqk")

MANIFEST, INDEX = "manifest.json", "index.json"
FORMAT = 2
"""Of what is written; 1 had DeepSpeed's own files."""
AVERAGED = "averaged"
"""What the manifest of an average calls the list of the checkpoints that it is made of."""
PARTIAL, ASIDE = ".partial", ".aside"
_DIGEST = "sha256"


def _digest_of(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: It is not what was written, or a file is missing or has another size.
        UserError: It is of a version with another format.
    """
    with damage_named(path / MANIFEST):
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest[_DIGEST] != _digest_of(manifest):
            raise DamagedError(f"{path / MANIFEST}: damaged, its contents are not what was written")
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{path}: was written in format {manifest.get('format', 1)}, which this version does not read: it must "
                f"be {FORMAT}; go on with the version that wrote it, or start another run.dir"
            )
    for name, size in manifest["files"].items():
        with damage_named(path / name):
            if (actual := (path / name).stat().st_size) != size:
                raise DamagedError(f"{path / name}: damaged, it has {actual} bytes, but {size} were written")
    return dict(manifest)


def describe(folder: Path, manifest: Mapping[str, Any], index: Index, sizes: Mapping[str, int]) -> None:
    """Write what makes a folder of tensors a checkpoint; see `CheckpointStore.commit`."""
    assert not (name := index.incomplete()), f"{name} has not been written whole"
    text = index.to_json().encode()
    about = {
        "format": FORMAT,
        **manifest,
        "files": {**sizes, INDEX: len(text)},
        "index": hashlib.sha256(text).hexdigest(),
    }
    # Through JSON once, so that the digest is of what a reader will find: tuples become lists.
    whole = json.loads(json.dumps(about))
    (folder / INDEX).write_bytes(text)
    (folder / MANIFEST).write_text(json.dumps({**whole, _DIGEST: _digest_of(whole)}, indent=1))
    for name in (INDEX, MANIFEST):
        sync_file(folder / name)
    sync_directory(folder)


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: `<run.dir>/checkpoints`.
        retention: Which of them are kept when a new one is there.
    """

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self.retention = retention

    def path(self, step: int) -> Path:
        """Folder of a complete checkpoint."""
        return self.folder / f"step-{step}"

    def partial(self, step: int) -> Path:
        """Folder of a checkpoint that is being written."""
        return self.folder / f"step-{step}{PARTIAL}"

    def steps(self) -> list[int]:
        """Steps with a folder of their own, damaged ones included, oldest first."""
        found = (
            re.fullmatch(r"step-([1-9][0-9]*)", entry.name) for entry in self.folder.glob("step-*") if entry.is_dir()
        )
        return sorted(int(match[1]) for match in found if match)

    def aside(self) -> list[Path]:
        """What has been set aside."""
        return sorted(self.folder.glob(f"step-*{ASIDE}"))

    def begin(self, step: int) -> None:
        """Make the folder that ranks write into, and remove what killed processes have left."""
        self.remove_partial()
        self.partial(step).mkdir(parents=True, exist_ok=True)

    def commit(self, step: int, manifest: Mapping[str, Any], index: Index, sizes: Mapping[str, int]) -> None:
        """Turn the partial folder of a step into a checkpoint and remove those that are not to be kept.

        Args:
            step: The step.
            manifest: The mappings `progress`, `config`, `identity`, `data` and `state`, and `valid_loss` or None.
            index: Where everything is.
            sizes: Bytes of each file of the ranks; they are on the disk.

        Raises:
            OSError: Something could not be written.
        """
        partial = self.partial(step)
        describe(partial, manifest, index, sizes)
        if self.path(step).exists():  # the run went back behind it, or it is damaged
            self.set_aside(step)
        partial.rename(self.path(step))
        sync_directory(self.folder)
        self.prune()

    def kept(self) -> dict[int, str]:
        """Why each checkpoint is kept, empty for one that need not be; those that cannot be used are not among them."""
        losses: dict[int, float | None] = {}
        for step in self.steps():
            with suppress(UserError):
                losses[step] = read_manifest(self.path(step))["valid_loss"]
        return self.retention.reasons(losses)

    def prune(self) -> None:
        """Remove the checkpoints that are not to be kept."""
        for step, reason in self.kept().items():
            if not reason:
                self.remove(self.path(step))

    def remove(self, path: Path) -> None:
        """Remove a checkpoint, or say that it cannot be: what is newer is none the worse for it."""
        try:
            if path.suffix != PARTIAL:
                # What a kill leaves of it then looks like any other partial folder.
                path = path.rename(path.with_name(f"{path.name}.old{PARTIAL}"))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            logger.warning("%s: could not be removed (%s)", path, error.strerror or error)

    def set_aside(self, step: int) -> Path:
        """Keep a checkpoint for whoever wants to look at it, under a name that no start takes; return its path."""
        names = (self.folder / f"step-{step}{number}{ASIDE}" for number in chain([""], map(".{}".format, count(2))))
        path = next(name for name in names if not name.exists())
        self.path(step).rename(path)
        return path

    def remove_partial(self) -> None:
        """Remove what killed processes left."""
        for entry in self.folder.glob(f"step-*{PARTIAL}"):
            self.remove(entry)
