"""Starting the processes of one machine and watching them, by torch's elastic launcher."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from megaqk.errors import AGAIN, UserError
from megaqk.runtime.launch import OWN_LAUNCHER, Launch
from megaqk.runtime.signals import STOPPING, ignore_stop_signals


def count_processes(wanted: str, launch: Launch) -> int:
    """What `--processes` asks for; `auto` is one for each GPU, or one process.

    Raises:
        UserError: If it is no number of processes, or a launcher has started this process already.
    """
    if launch.launcher != "none":
        raise UserError(f"--processes = {wanted}: must be left out, since {launch.launcher} starts the processes")
    if wanted == "auto":
        import torch

        return max(torch.cuda.device_count(), 1)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UserError(f"--processes = {wanted}: must be a positive number, or auto for one a GPU")
    return int(wanted)


def supervise(command: Sequence[str], processes: int) -> int:
    """Run `python -m megaqk COMMAND` in so many processes, until all have ended or one has failed.

    Returns:
        The exit status of the first that failed, 128 and more for one that a signal killed; 0 if none did.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each rank says itself what ends it; the launcher would say it again, on a page.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL + 1)
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL + 1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=OWN_LAUNCHER,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        # What it does itself with a signal is to kill what has not ended after half a minute.
        signals_to_handle="",
    )
    try:
        with _forwarded_signals():
            elastic_launch(config, sys.executable)("-m", "megaqk", *command)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        killed = [failure for failure in error.failures.values() if failure.exitcode < 0]
        if len(killed) == processes:  # nobody was left to name it
            name = signal.Signals(-first.exitcode).name
            sys.stderr.write(f"megaqk: error: rank {first.local_rank} was killed by {name}\n")
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0


@contextmanager
def _forwarded_signals() -> Iterator[None]:
    def forward(number: int, _frame: object) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            sys.exit(AGAIN)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    for number in STOPPING:
        signal.signal(number, forward)
    try:
        yield
    finally:
        ignore_stop_signals()  # what is left is to say how it ended
