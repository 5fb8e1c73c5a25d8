"""The checkpoints of a run on disk: each is either complete or not there.

DeepSpeed writes into `step-<n>.partial`; when all ranks are done, rank 0 adds a manifest with the size and checksum of
every file, as the rank that wrote it has counted them, and renames. A process killed at any moment thus leaves the
previous checkpoint as it was.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megaqk.errors import UserError
from megaqk.runtime.files import sha256_of, sync_directory, sync_file

MANIFEST = "manifest.json"
PARTIAL = ".partial"
SECTIONS = ("progress", "config", "identity", "data", "state", "files")
"""What a manifest holds, each a mapping."""
DIGEST = "sha256"
"""The key of a manifest that holds the `digest_of` its sections."""


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the sections of a manifest, in hexadecimal."""
    sections = {name: manifest[name] for name in SECTIONS}
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


class CheckpointStore:
    """The checkpoints of a run, as a folder.

    Args:
        folder: `<run.dir>/checkpoints`.
        keep: Newest checkpoints kept.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        """Folder of a complete checkpoint."""
        return self.folder / f"step-{step}"

    def partial(self, step: int) -> Path:
        """Folder of a checkpoint that is being written."""
        return self.folder / f"step-{step}{PARTIAL}"

    def steps(self) -> list[int]:
        """Steps with a folder of their own, damaged ones included, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.glob("step-*") if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def manifest(self, step: int) -> dict[str, Any]:
        """What was written beside the checkpoint of a step.

        Raises:
            UserError: If the manifest cannot be read, or a file is missing or has another size than when written.
        """
        path = self.path(step)
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if not isinstance(manifest, dict) or any(not isinstance(manifest.get(key), dict) for key in SECTIONS):
                raise UserError(f"{path / MANIFEST}: damaged, must hold {', '.join(SECTIONS)}")
            if manifest.get(DIGEST) != digest_of(manifest):
                raise UserError(f"{path / MANIFEST}: damaged, its contents are not what was written")
            if manifest["progress"]["step"] != step:
                raise UserError(f"{path / MANIFEST}: damaged, it is of step {manifest['progress']['step']}")
            for name, written in manifest["files"].items():
                actual = (path / name).stat().st_size
                if actual != written["bytes"]:
                    raise UserError(f"{path / name}: {actual} bytes, but {written['bytes']} were written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged checkpoint ({error})") from error
        return manifest

    def check_contents(self, step: int, *, share: int = 0, shares: int = 1) -> None:
        """Compare every `shares`-th file with its checksum, so that ranks can divide the reading.

        Raises:
            UserError: If the manifest is damaged or a file is not what was written.
        """
        files = self.manifest(step)["files"]
        for name in sorted(files)[share::shares]:
            if sha256_of(self.path(step) / name) != files[name].get("sha256"):
                raise UserError(f"{self.path(step) / name}: damaged, its contents are not what was written")

    def note_damaged(self, step: int) -> None:
        """Let a damaged checkpoint take no good one's place among those kept."""
        self._damaged.add(step)

    def commit(self, step: int, manifest: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
        """Turn the partial folder of a step into a checkpoint and remove those beyond `keep`.

        Args:
            step: The step.
            manifest: The sections of the manifest, but for the files.
            files: Size (`bytes`) and checksum (`sha256`) of every file; they are on the disk.
        """
        partial = self.partial(step)
        # Through JSON once, so that the digest is of what a reader will find: tuples become lists.
        whole = json.loads(json.dumps({**manifest, "files": files}))
        (partial / MANIFEST).write_text(json.dumps({**whole, DIGEST: digest_of(whole)}, indent=1))
        sync_file(partial / MANIFEST)
        sync_directory(partial)
        final = self.path(step)
        if final.exists():  # a damaged one that the run went back behind
            self._remove(step)
        partial.rename(final)
        sync_directory(self.folder)
        older = [s for s in self.steps() if s < step]
        good = [s for s in older if s not in self._damaged]
        # A damaged one takes no good one's place among those kept.
        for old in {*older} - {*good[len(good) - self._keep + 1 :]}:
            self._remove(old)

    def set_aside(self, step: int) -> None:
        """Rename a checkpoint so that no run starts from it."""
        aside = self.folder / f"step-{step}.aside"
        if aside.exists():
            shutil.rmtree(aside)
        self.path(step).rename(aside)
        sync_directory(self.folder)

    def _remove(self, step: int) -> None:
        # Renamed first: what a kill leaves of it then looks like any other partial folder.
        doomed = self.folder / f"step-{step}.old{PARTIAL}"
        self.path(step).rename(doomed)
        shutil.rmtree(doomed)

    def remove_partial(self) -> None:
        """Remove what killed processes left."""
        for entry in self.folder.glob(f"step-*{PARTIAL}"):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
