"""The command in a rank that is killed at a moment of its work, and damage to what it has written."""

import importlib
import os
import random
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import commands

MOMENTS: dict[str, tuple[str, float, int]] = {
    "load": ("megaqk.checkpoint.reader:Checkpoint.read", 0.05, 1),
    "step": ("megaqk.training.trainer:Trainer.step", 0.05, 3),
    "write": ("megaqk.training.saver:write_rank_file", 0.005, 2),
    "commit": ("megaqk.checkpoint.store:CheckpointStore.commit", 0.005, 2),
}
"""What begins then, the seconds from there within which the kill falls, and which of its calls may be the one."""


@dataclass(frozen=True)
class Kill:
    """When a rank is killed.

    Attributes:
        victim: The rank.
        moment: One of `MOMENTS`.
        call: Which call it is, from 1.
        delay: Seconds from there.
        log: A file that gets a line: the moment, and whether a checkpoint was being written.
    """

    victim: int
    moment: str
    call: int
    delay: float
    log: Path


def draw_kill(numbers: random.Random, world: int, log: Path) -> Kill:
    """A kill at random."""
    moment = numbers.choice(["load", "step", "step", "write", "commit"])
    _, within, calls = MOMENTS[moment]
    victim = 0 if moment == "commit" else numbers.randrange(world)  # which the first rank does alone
    return Kill(victim, moment, numbers.randint(1, calls), numbers.uniform(0, within), log)


def run_killed(argv: Sequence[str], kill: Kill | None) -> int:
    """A command in which a rank is killed, if it gets that far."""
    if kill is not None and int(os.environ["RANK"]) == kill.victim:
        _arm(kill)
    return commands.run_command(argv)


def _arm(kill: Kill) -> None:
    module, _, path = MOMENTS[kill.moment][0].partition(":")
    *names, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in names:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), count(1)

    def begin(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == kill.call:
            threading.Timer(kill.delay, die).start()
        return real(*args, **kwargs)

    def die() -> None:
        saving = any(thread.name == "checkpoint" for thread in threading.enumerate())
        with kill.log.open("a") as log:
            log.write(f"in-{kill.moment} {'while-saving' if saving else ''}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, begin)


def tear(folder: Path, numbers: random.Random) -> Path:
    """Cut a file of a checkpoint off at a random length."""
    path = numbers.choice(sorted(folder.iterdir()))
    os.truncate(path, numbers.randrange(path.stat().st_size))
    return path


def flip(folder: Path, numbers: random.Random) -> Path:
    """Turn a random bit of a checkpoint over, of what a start reads: the head of a rank's file is for others."""
    pieces = Checkpoint(folder).index.files
    path = numbers.choice(sorted(folder.iterdir()))
    first = pieces[path.name][0].offset if path.name in pieces else 0
    with path.open("r+b") as file:
        file.seek(at := numbers.randrange(first, path.stat().st_size))
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << numbers.randrange(8)]))
    return path
