"""Ranks whose file system shows them old listings of directories, as NFS may, save and resume as others do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.runtime.files import sha256_of
from tests.distributed import commands
from tests.harness import run_distributed

TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "data 2, ZeRO-3": (2, {"zero_stage": 3}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
}


def run_with_stale_listings(argv: list[str], empty: str) -> int:
    """A command where rank 0 sees nothing in a checkpoint, and the others nothing in the folder of checkpoints."""
    stale = "/checkpoints/step-" if os.environ["RANK"] == "0" else "/checkpoints"
    for name in ("scandir", "listdir"):

        def look(path: Any = ".", original: Any = getattr(os, name)) -> Any:
            # Removing a folder lists descriptors, which are fresh.
            return original(empty if isinstance(path, str | os.PathLike) and stale in str(path) else path)

        setattr(os, name, look)
    return commands.run_command(argv)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_saves_and_resumes(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str], name: str
) -> None:
    world, parallel = TOPOLOGIES[name]
    config, checkpoints = write_config(tmp_path, parallel=parallel), tmp_path / "run" / "checkpoints"
    (tmp_path / "empty").mkdir()
    arguments = (["pretrain", str(config)], str(tmp_path / "empty"))
    assert run_distributed(run_with_stale_listings, world, *arguments, init=False) == [0] * world
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-10", "step-9"]
    for folder in checkpoints.iterdir():
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in folder.iterdir()
            if path.name != "manifest.json"
        }
        assert len(files) >= 2 * world
        assert json.loads((folder / "manifest.json").read_text())["files"] == files
    whole = losses(tmp_path)
    shutil.rmtree(checkpoints / "step-10")
    assert run_distributed(run_with_stale_listings, world, *arguments, init=False) == [0] * world
    assert "resumed after step 9" in capfd.readouterr().out
    assert losses(tmp_path) == whole


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]
