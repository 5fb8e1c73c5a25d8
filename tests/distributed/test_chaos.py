"""Ranks that are killed again and again, disks that are full and files that are damaged change nothing in a run.

It changes its topology on the way, and ends bit for bit as one that changes it at the same steps undisturbed.
"""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megaqk.checkpoint.damage import DamagedError
from megaqk.checkpoint.reader import Checkpoint
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore
from tests import harness
from tests.distributed import kills
from tests.harness import DistributedError, run_distributed

TOPOLOGIES: list[tuple[int, list[str]]] = [
    (2, ["parallel.tensor=2"]),
    (2, ["parallel.pipeline=2", "parallel.layers_per_stage=[3,1]"]),
    (4, ["parallel.tensor=2", "parallel.zero_stage=2"]),
    (2, ["parallel.zero_stage=3"]),
    (1, []),
    (4, ["parallel.pipeline=2", "parallel.sequence=true", "parallel.tensor=2"]),
]
SECTIONS: dict[str, dict[str, Any]] = {
    "schedule": {"kind": "constant", "warmup_steps": 2},
    # The gradient of a key's bias is rounding alone, of which Adam would make a whole step.
    "optimizer": {"lr": 5e-4, "eps": 1e-6},
    "checkpoint": {"every": 2, "keep": 3},
    "evaluation": {"batches": 0},
}
DISK_MIB = 16
ENDED_WITHIN = 20.0
"""Seconds until all other ranks have ended by themselves."""


@dataclass(frozen=True)
class Phase:
    """Steps of a run on one topology: up to `end`."""

    world: int
    overrides: list[str]
    end: int


class Run:
    """A run that changes its topology.

    Args:
        config: Its configuration.
        folder: Its `run.dir`.
        phases: Its topologies.
    """

    def __init__(self, config: Path, folder: Path, phases: list[Phase]) -> None:
        self.config, self.folder, self.phases = config, folder, phases
        self.store = CheckpointStore(folder / "checkpoints", Retention(newest=3))

    def newest(self) -> int:
        """The step that a start goes on from."""
        for step in reversed(self.store.steps()):
            try:
                Checkpoint(self.store.path(step)).verify()
            except DamagedError:
                continue
            return step
        return 0

    def phase(self) -> tuple[int, Phase]:
        """Where it is."""
        step = self.newest()
        return next((number, phase) for number, phase in enumerate(self.phases) if phase.end > step)

    def start(self, phase: Phase, kill: kills.Kill | None = None) -> list[int] | None:
        """The statuses of the ranks, or None if one was killed and the others ended by themselves."""
        argv = ["pretrain", str(self.config), f"training.steps={phase.end}", *phase.overrides]
        try:
            statuses = run_distributed(kills.run_killed, phase.world, argv, kill, init=False, timeout=180)
        except DistributedError as error:
            if kill is None or error.rank != kill.victim or "was still running" in str(error):
                raise
            return None
        return statuses

    def finish(self) -> None:
        """All that is left, undisturbed."""
        while self.newest() < self.phases[-1].end:
            _, phase = self.phase()
            assert self.start(phase) == [0] * phase.world

    def end(self) -> Checkpoint:
        """What it ends with."""
        return Checkpoint(self.store.path(self.phases[-1].end))

    def losses(self) -> list[tuple[int, float]]:
        """By step, as recorded."""
        records = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system that is soon full, or None where it cannot be had."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, timeout=20).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def start_on_a_full_disk(run: Run, phase: Phase, disk: Path) -> None:
    """A start that cannot save, and leaves what there was."""
    run.store.remove_partial()  # as the start does, which would give it room
    newest = run.newest()
    size = sum(file.stat().st_size for file in run.store.path(newest).iterdir())
    ballast, free = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - size // 2))
    try:
        assert run.start(phase) == [2] * phase.world
    finally:
        ballast.unlink()
    assert run.newest() == newest


def bring_to_its_end(
    run: Run, numbers: random.Random, wanted: int, events: list[str], disk: Path | None
) -> Counter[str]:
    """Start a run again and again, under kills and other events that are spread over them; what there was, counted."""
    counts: Counter[str] = Counter()
    log = run.config.parent / "kills"
    log.touch()
    due = [(wanted * (number + 1) // (len(events) + 1), event) for number, event in enumerate(events)]
    while run.newest() < run.phases[-1].end:
        number, phase = run.phase()
        counts["starts"] += 1
        if due and counts["kills"] >= due[0][0] and len(run.store.steps()) > 1:
            _, event = due.pop(0)
            counts[event] += 1
            if event == "full disk":
                assert disk is not None
                start_on_a_full_disk(run, phase, disk)
                continue
            step = run.newest()
            damage = kills.tear if event == "torn" else kills.flip
            print("damaged:", damage(run.store.path(step), numbers))
            assert run.newest() < step
            number, phase = run.phase()
        more = counts["kills"] < wanted * (number + 1) / len(run.phases)
        statuses = run.start(phase, kills.draw_kill(numbers, phase.world, log) if more else None)
        if statuses is None:
            counts["kills"] += 1
        else:
            assert statuses == [0] * phase.world
    for line in log.read_text().splitlines():
        counts.update(f"kills {words}" for words in line.split())
    return counts


@pytest.mark.parametrize(
    ("wanted", "phases", "events"),
    [
        pytest.param(8, 4, ["torn", "full disk", "flipped"], id="8"),
        pytest.param(
            50,
            6,
            ["torn", "full disk", "flipped", "torn", "flipped", "full disk"],
            id="50",
            marks=[pytest.mark.full, pytest.mark.timeout(3000)],
        ),
    ],
)
def test_nothing_changes_a_run(
    tmp_path: Path,
    small_disk: Path | None,
    write_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    wanted: int,
    phases: int,
    events: list[str],
) -> None:
    monkeypatch.setattr(harness, "GRACE_SECONDS", ENDED_WITHIN)
    length = 3 * wanted // phases + 4
    schedule = [Phase(*topology, length * (number + 1)) for number, topology in enumerate(TOPOLOGIES[:phases])]

    def run(name: str, disk: Path, phases: list[Phase]) -> Run:
        config = write_config(tmp_path / "configs" / name, run={"dir": str(disk / name)}, **SECTIONS)
        return Run(config, disk / name, phases)

    disturbed = run("disturbed", small_disk or tmp_path, schedule)
    began = time.monotonic()
    events = [event for event in events if small_disk or event != "full disk"]
    counts = bring_to_its_end(disturbed, random.Random(wanted), wanted, events, small_disk)
    print(f"{dict(counts)}, {time.monotonic() - began:.0f} s")
    assert counts["kills"] >= wanted
    assert counts["kills while-saving"] >= wanted // 5
    assert len(disturbed.store.aside()) == counts["torn"] + counts["flipped"] > 1

    quiet = run("quiet", tmp_path, schedule)
    quiet.finish()
    ours, theirs = disturbed.end(), quiet.end()
    assert ours.manifest["state"] == theirs.manifest["state"]
    assert list(ours.index.tensors) == list(theirs.index.tensors)
    for name in theirs.index.tensors:
        assert torch.equal(ours.tensor(name), theirs.tensor(name)), name
    assert disturbed.losses() == quiet.losses()
    assert [step for step, _ in quiet.losses()] == list(range(1, length * phases + 1))

    never_changed = run("never-changed", tmp_path, [Phase(1, [], length * phases)])
    never_changed.finish()
    plain = never_changed.end()
    apart = max(float((ours.weight(name) - plain.weight(name)).abs().max()) for name in plain.parameters)
    print(f"{apart:.1e} from a run that never changed")
    assert apart < 1e-5
    if small_disk is None:
        pytest.skip("all but full disks: a small file system could not be mounted, which takes root")
