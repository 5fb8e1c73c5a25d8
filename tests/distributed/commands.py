"""The command line inside a rank of the harness, and ways for it to be killed.

A rank of the harness has torch and DeepSpeed loaded already, so a run costs a fraction of what `torchrun` takes.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_command(argv: Sequence[str]) -> int:
    """`megaqk ARGV` on this rank, without what takes longer than a tiny run and changes nothing in it."""
    from megaqk import cli
    from megaqk.training import peak

    peak.measured_peak = lambda *args, **kwargs: 1e9
    # All statuses are looked at here, where under torchrun the first rank gets time to end the job.
    cli.HEAD_START_SECONDS = 0.0
    return cli.main(argv)


def run_and_watch_reads(argv: Sequence[str]) -> tuple[int, list[int]]:
    """The same, with the first sample of every global batch and evaluation that was read."""
    from megaqk.training.batches import RankBatches

    read, first_samples = RankBatches.read, []

    def watched(self: RankBatches, first_sample: int, micro_batches: int, *end: int) -> Any:
        first_samples.append(first_sample)
        return read(self, first_sample, micro_batches, *end)

    RankBatches.read = watched  # type: ignore[method-assign]
    return run_command(argv), first_samples


def run_and_count_batches(argv: Sequence[str]) -> tuple[int, int]:
    """The same, with the number of micro-batches that were made of samples."""
    from megaqk.training.batches import RankBatches

    split, made = RankBatches._split, 0

    def counted(self: RankBatches, samples: Any) -> Any:
        nonlocal made
        made += 1
        return split(self, samples)

    RankBatches._split = counted  # type: ignore[method-assign]
    return run_command(argv), made


def run_with(argv: Sequence[str], *more: Any) -> int:
    """The same, with hooks after those of every run."""
    from megaqk.training import hooks

    defaults = hooks.default_hooks
    hooks.default_hooks = lambda: [*defaults(), *more]
    return run_command(argv)


def run_killed_at_step(argv: Sequence[str], step: int, *more: Any) -> int:
    """The same, until every rank is killed with `step` steps taken and recorded."""
    from megaqk.training.trainer import Hook, Step, Trainer

    class Killer(Hook):
        def step(self, run: Trainer, now: Step) -> None:
            if now.progress.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    return run_with(argv, *more, Killer())


def run_killed_in_save(argv: Sequence[str], step: int) -> int:
    """The same, until every rank is killed with half of its file of the checkpoint of `step` written."""
    from megaqk.training import saver

    write = saver.write_rank_file

    def write_half_and_die(path: Path, *args: Any) -> Any:
        written = write(path, *args)
        if f"step-{step}." in str(path):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    saver.write_rank_file = write_half_and_die
    return run_command(argv)


def run_killed_before_rename(argv: Sequence[str], step: int) -> int:
    """The same, until the process is killed with the checkpoint of `step` written and not yet in its place."""
    rename = Path.rename

    def die(self: Path, target: Any) -> Path:
        if self.name.startswith(f"step-{step}."):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = die  # type: ignore[method-assign]
    return run_command(argv)
