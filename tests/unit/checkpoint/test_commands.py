"""`megaqk checkpoint list | verify | prune` on a folder of small checkpoints."""

import re
from pathlib import Path
from typing import Any

import pytest

from megaqk.checkpoint.reader import Checkpoint
from megaqk.cli import main
from megaqk.runtime.locks import try_lock
from tests.unit.checkpoint.checkpoints import open_store, save

CONFIG: dict[str, Any] = {
    "checkpoint": {"keep": 2, "keep_every": 20, "keep_best": 1},
    "parallel": {"tensor": 2, "pipeline": 1, "zero_stage": 1},
    "training": {"precision": "bf16"},
}
LOSSES = {10: 3.0, 20: 4.0, 30: None, 40: 3.5, 50: 3.75}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "checkpoints", newest=9)
    for step, loss in LOSSES.items():
        save(store, step, loss, CONFIG)
    store.set_aside(30)
    return tmp_path


def damage(run_dir: Path, step: int) -> None:
    victim = run_dir / "checkpoints" / f"step-{step}" / "rank-00000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")


def test_list(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "checkpoints" / "step-20" / "index.json").unlink()
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles, first, second, third, fourth, aside = [re.split("  +", line.strip()) for line in lines]
    assert titles[0] == "step"
    assert first[0] == "10"
    assert "3.0000" in first
    assert "tensor 2 x pipeline 1 of 2 ranks, ZeRO-1, bf16" in first
    assert [line[-1] for line in (first, third, fourth)] == ["best", "newest, every 20", "newest"]
    assert "index.json: damaged, it is not there" in second[-1]
    assert (aside[0], aside[-1]) == ("30.aside", "set aside")


def test_verify(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    damage(run_dir, 20)
    assert main(["checkpoint", "verify", str(run_dir)]) == 2
    said = capsys.readouterr()
    assert "step 10: whole" in said.out
    assert "rank-00000.safetensors: damaged" in said.out
    assert said.err.endswith("step 20 cannot be used\n")
    assert main(["checkpoint", "verify", "--step", "40", str(run_dir)]) == 0
    assert main(["checkpoint", "verify", "--step", "41", str(run_dir)]) == 2
    assert "has no step 41; has [10, 20, 40, 50]" in capsys.readouterr().err


def test_prune(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(run_dir / "checkpoints")
    lock = try_lock(run_dir / ".lock")
    assert lock is not None
    assert main(["checkpoint", "prune", str(run_dir)]) == 2
    assert "a job is writing to it" in capsys.readouterr().err
    lock.release()
    assert main(["checkpoint", "prune", "--keep", "0", str(run_dir)]) == 2
    assert "--keep = 0: must be at least 1" in capsys.readouterr().err
    assert main(["checkpoint", "prune", str(run_dir)]) == 0  # nothing to do: 10 is the best, 20 and 40 are for good
    assert store.steps() == [10, 20, 40, 50]
    assert main(["checkpoint", "prune", "--keep-every", "0", "--aside", "--dry-run", str(run_dir)]) == 0
    assert [line.split("-")[-1] for line in capsys.readouterr().out.splitlines()] == ["20", "30.aside"]
    assert store.steps() == [10, 20, 40, 50]
    assert main(["checkpoint", "prune", "--keep", "1", "--keep-every", "0", "--aside", str(run_dir)]) == 0
    assert store.steps() == [10, 50]
    assert not store.aside()


def test_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "list", str(tmp_path)]) == 2
    assert "has no folder checkpoints" in capsys.readouterr().err


def test_prune_never_takes_the_last_whole_one(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(run_dir / "checkpoints")
    damage(run_dir, 50)
    words = ["checkpoint", "prune", "--keep", "1", "--keep-every", "0", "--keep-best", "0", str(run_dir)]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "step-50/rank-00000.safetensors: damaged" in said.err
    assert "nothing was removed" in said.err
    assert said.out == ""
    assert store.steps() == [10, 20, 40, 50]
    (store.path(50) / "manifest.json").write_text("")
    assert main(words) == 0
    assert store.steps() == [40, 50]


def test_what_a_run_removes_meanwhile_is_not_damaged(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(run_dir / "checkpoints")
    check = Checkpoint.verify

    def late(self: Checkpoint) -> None:
        if self.path.name == "step-20":
            store.remove(self.path)
        check(self)

    monkeypatch.setattr(Checkpoint, "verify", late)
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    assert "step 20: removed meanwhile" in capsys.readouterr().out
    monkeypatch.setattr(type(store), "kept", lambda _: {})
    assert main(["checkpoint", "list", str(run_dir)]) == 0
