"""Whatever a run writes when its disk is full: one line that names it, and nothing before it is lost."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed import commands
from tests.harness import run_distributed

LIMIT = 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs a small file system, which only root may mount: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, pages: int) -> None:
    """Leave so many blocks free."""
    state = os.statvfs(disk)
    with (disk / "filler").open("wb") as stream:
        stream.write(bytes(state.f_bsize * (state.f_bavail - pages)))


def run_and_fill(argv: list[str], disk: Path, after: int, pages: int) -> int:
    """`megaqk ARGV` on a disk that gets full: at the start (0), before a step is recorded, or at the end (10)."""
    from megaqk.training import hooks
    from megaqk.training.trainer import Hook, Step, Trainer

    class Filler(Hook):
        def step(self, run: Trainer, now: Step) -> None:
            if now.progress.step == after < 10:
                fill(disk, pages)

        def end(self, run: Trainer) -> None:
            if after == 10:
                fill(disk, pages)

    if not after:
        fill(disk, pages)
    defaults = hooks.default_hooks
    hooks.default_hooks = lambda: [Filler(), *defaults()]
    return commands.run_command(argv)


@pytest.mark.parametrize(
    ("after", "pages", "named"),
    [
        (0, 0, r"run/\.lock"),
        (0, 1, r"run/\.owner"),
        (0, 2, r"cache/\w+\.lock"),
        (0, 6, r"cache/\w+/corpus\.bin\.partial"),
        (0, 14, r"run/(tensorboard/events\.\S+|result\.json|metrics\.jsonl)"),
        (4, 0, r"run/\S+"),
        (10, 0, r"run/curves\.png"),
    ],
)
def test_a_full_disk_is_one_line_and_costs_nothing(
    small_disk: Path,
    write_config: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    after: int,
    pages: int,
    named: str,
) -> None:
    config = write_config(small_disk, data={"cache_dir": str(small_disk / "cache")}, checkpoint={"keep": 1})
    argv = ["pretrain", str(config)]
    assert run_distributed(run_and_fill, 1, argv, small_disk, after, pages, init=False, timeout=LIMIT) == [2]
    output = capfd.readouterr().out
    [line] = [line for line in output.splitlines() if line.startswith("megaqk: error: ")]
    assert re.fullmatch(rf"megaqk: error: {re.escape(str(small_disk))}/{named}: No space left on device", line)
    assert "Traceback" not in output
    # A sign of life without a holder's name would hold up the next start.
    assert not list(small_disk.rglob("*.alive"))
    (small_disk / "filler").unlink()
    assert run_distributed(commands.run_command, 1, argv, init=False, timeout=LIMIT) == [0]
    assert ("resumed after step" in capfd.readouterr().out) == (after > 3)
    records = [json.loads(text) for text in (small_disk / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 11))
    assert json.loads((small_disk / "run" / "result.json").read_text())["state"] == "finished"


def test_messages_that_a_full_disk_does_not_take_end_no_run(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(tmp_path, parallel={"tensor": 2})
    argv = ["pretrain", str(config), "--processes", "2", "training.steps=3", "evaluation.batches=0"]
    with Path("/dev/full").open("wb") as full:
        subprocess.run([sys.executable, "-m", "megaqk", *argv], stderr=full, timeout=LIMIT, check=True)
