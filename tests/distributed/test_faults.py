"""A fault of one rank ends all of them within seconds, with one line that names it; TP 2 x PP 2."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.runtime.locks import try_lock
from tests.distributed import commands
from tests.harness import run_distributed, run_torchrun

PARALLEL = {"tensor": 2, "pipeline": 2}
VICTIM = 3
SECONDS = 15.0
"""From the fault to the end of the last rank: twice the grace that a rank gives the others, and a slow machine."""


def plant_full_disk() -> None:
    """A rank whose disk takes no file of the size of its share of a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def plant_unreadable_corpus() -> None:
    """A rank on another machine, where the corpus is not."""
    os.chdir("/")


def plant_folder_of_its_own() -> None:
    """A rank on another machine, whose run.dir is a disk of its own."""
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")


def plant_exception() -> None:
    """A rank with a defect in the building of its model."""
    from megaqk.training import engine

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("planted")

    engine.initialize = fail


def run_with_fault(argv: list[str], plant: Callable[[], None]) -> tuple[int, float]:
    import torch.distributed as dist

    # Over NCCL it may wait for ranks that are gone.
    dist.destroy_process_group = lambda *_: time.sleep(600)
    if int(os.environ["RANK"]) == VICTIM:
        plant()
    return commands.run_command(argv), time.time()


def said(output: str) -> list[str]:
    assert "Traceback" not in output
    return [line for line in output.splitlines() if line.startswith("megaqk: error: ")]


@pytest.mark.parametrize(
    ("plant", "status", "parts"),
    [
        (plant_full_disk, 2, ["checkpoints", "step-3: could not be saved"]),
        (plant_unreadable_corpus, 2, ["tokenizer.model: No such file"]),
        (plant_folder_of_its_own, 2, ["run.dir = run: is not the folder that rank 0 has claimed"]),
        (plant_exception, 1, ["ZeroDivisionError: planted", f"logs/rank{VICTIM}.log"]),
    ],
    ids=["full-disk", "unreadable-corpus", "own-folder", "exception-while-built"],
)
def test_a_fault_of_one_rank_ends_all(
    tmp_path: Path,
    write_config: Callable[..., Path],
    relative_corpus: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[], None],
    status: int,
    parts: list[str],
) -> None:
    sections: dict[str, Any] = {"data": relative_corpus} if plant is plant_unreadable_corpus else {}
    if plant is plant_folder_of_its_own:
        monkeypatch.chdir(tmp_path)
        sections = {"run": {"dir": "run"}}
    config = write_config(tmp_path, parallel=PARALLEL, **sections)
    results = run_distributed(run_with_fault, 4, ["pretrain", str(config)], plant, init=False, timeout=60)
    assert [result for result, _ in results] == [status] * 4
    ends = [end for _, end in results]
    assert max(ends) - min(ends) < SECONDS
    [line] = said(capfd.readouterr().out)
    assert f"rank {VICTIM}" in line
    assert all(part in line for part in parts), line


def test_a_held_lock_is_one_line(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, parallel=PARALLEL)
    (tmp_path / "run").mkdir()
    lock = try_lock(tmp_path / "run" / ".lock")
    assert lock is not None
    try:
        argv = ["pretrain", str(config)]
        assert run_distributed(commands.run_command, 4, argv, init=False, timeout=60) == [2] * 4
    finally:
        lock.release()
    [line] = said(capfd.readouterr().out)
    assert f"run.dir = {tmp_path / 'run'}: another job is writing to it" in line
    assert "rank 0" in line
    # What the other job keeps there is as it was.
    assert not (tmp_path / "run" / "result.json").exists()


PROGRAM = """
import os, resource, sys
if os.environ["RANK"] == "3":
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
from megaqk.cli import main
sys.exit(main())
"""


def test_under_torchrun_too(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """Where ranks are processes of their own and nothing but the store and broken connections tells them."""
    config = write_config(tmp_path, parallel=PARALLEL)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = run_torchrun([str(program), "pretrain", str(config)], 4, timeout=90, check=False)
    assert result.returncode != 0
    ours = [line for line in result.stdout.splitlines() if line.startswith("megaqk: error: ")]
    assert len(ours) == 1, result.stdout
    assert "(rank 3)" in ours[0]
    assert f"site-packages{os.sep}torch{os.sep}distributed{os.sep}distributed_c10d.py" not in result.stdout
