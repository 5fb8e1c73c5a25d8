"""Starting the processes of one machine and watching them, by torch's elastic launcher."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil

from megaqk.errors import AGAIN, UserError
from megaqk.runtime.launch import OWN_LAUNCHER, UNHEARD, Launch
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
    asked = _forward_signals()
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
        elastic_launch(config, sys.executable)("-m", "megaqk", *command)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode == UNHEARD:
            sys.stderr.write(
                f"megaqk: stopped by {' and '.join(asked)} before the first step; the same command goes on\n"
            )
            return AGAIN
        if first.exitcode < 0 and all(one.exitcode < 0 or one.exitcode == UNHEARD for one in error.failures.values()):
            # Nobody was left to name it, or knew of it yet.
            name = signal.Signals(-first.exitcode).name
            sys.stderr.write(f"megaqk: error: rank {first.local_rank} was killed by {name}\n")
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    finally:
        ignore_stop_signals()  # what is left is to say how it ended
    return 0


def _forward_signals() -> list[str]:
    """Have signals go on to the ranks, which are born deaf to them until they can heed them; return their names."""
    asked: list[str] = []

    def forward(number: int, _frame: object) -> None:
        asked.append(signal.Signals(number).name)
        ranks = psutil.Process().children()
        if not ranks:
            sys.stderr.write(f"megaqk: stopped by {signal.Signals(number).name} before any process was started\n")
            sys.stderr.flush()
            os._exit(AGAIN)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    for number in STOPPING:
        signal.signal(number, forward)
    # Processes inherit what the thread that starts them has blocked; another one takes the signals here.
    threading.Thread(target=threading.Event().wait, name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    return asked
