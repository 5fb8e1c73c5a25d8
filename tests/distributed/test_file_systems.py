"""File systems that show old listings of directories, as NFS may, or that take long, do not change a run."""

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import commands
from tests.harness import run_distributed

TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "data 2, ZeRO-3": (2, {"zero_stage": 3}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
}


def run_with_stale_listings(argv: list[str], empty: str) -> int:
    """A command where rank 0 sees nothing in a checkpoint, and the others nothing in the folder of checkpoints."""
    stale = "/checkpoints/step-" if os.environ["RANK"] == "0" else "/checkpoints"

    def seeing_less(look: Callable[..., Any]) -> Callable[..., Any]:
        # Removing a folder lists descriptors, which are fresh.
        return lambda path=".": look(empty if isinstance(path, str | os.PathLike) and stale in str(path) else path)

    os.scandir, os.listdir = seeing_less(os.scandir), seeing_less(os.listdir)
    return commands.run_command(argv)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_old_listings(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str], name: str
) -> None:
    world, parallel = TOPOLOGIES[name]
    config, checkpoints = write_config(tmp_path, parallel=parallel), tmp_path / "run" / "checkpoints"
    (tmp_path / "empty").mkdir()
    arguments = (["pretrain", str(config)], str(tmp_path / "empty"))
    assert run_distributed(run_with_stale_listings, world, *arguments, init=False) == [0] * world
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-10", "step-9"]
    for folder in checkpoints.iterdir():
        assert len(list(folder.iterdir())) == world + 2
        Checkpoint(folder).verify()
    whole = losses(tmp_path)
    shutil.rmtree(checkpoints / "step-10")
    assert run_distributed(run_with_stale_listings, world, *arguments, init=False) == [0] * world
    assert "resumed after step 9" in capfd.readouterr().out
    assert losses(tmp_path) == whole


def run_with_a_slow_disk(argv: list[str], patience: float, write: float) -> int:
    """A command where rank 1 writes a file for longer than DeepSpeed's collectives wait."""
    import deepspeed

    deepspeed.init_distributed = partial(deepspeed.init_distributed, timeout=timedelta(seconds=patience))
    from megaqk.training import saver

    save = saver.write_rank_file

    def save_slowly(*args: Any) -> Any:
        time.sleep(write)
        return save(*args)

    if os.environ["RANK"] == "1":
        saver.write_rank_file = save_slowly
    return commands.run_command(argv)


@pytest.mark.full
def test_ranks_wait_for_one_with_a_slow_disk(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(tmp_path, checkpoint={"every": 0})
    arguments = (["pretrain", str(config)], 20.0, 30.0)
    assert run_distributed(run_with_a_slow_disk, 2, *arguments, init=False, timeout=120) == [0, 0]
    assert (tmp_path / "run" / "checkpoints" / "step-10" / "manifest.json").exists()


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]
