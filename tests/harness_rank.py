"""The side of the harness that runs in a rank. It imports nothing heavy: the server it is forked from has."""

import faulthandler
import fcntl
import os
import pickle
import signal
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Assignment:
    rank: int
    world_size: int
    port: int
    call: bytes
    log: str
    init: bool
    timeout: float
    env: dict[str, str]


@dataclass(frozen=True)
class Success:
    value: Any


@dataclass(frozen=True)
class Failure:
    summary: str
    traceback: str
    error: BaseException | None


def run_rank(connection: Connection, lifeline: Connection, assignment: Assignment) -> None:
    """Do the assignment, send its outcome, and leave without clean-up: a case may have left anything behind."""
    _end_with(lifeline)
    _settle(assignment)
    try:
        outcome = pickle.dumps(Success(_call(assignment)))
    except BaseException as error:  # A SystemExit of the code under test is an outcome too.
        outcome = _describe(error)
    connection.send_bytes(outcome)
    connection.close()
    os._exit(0)


def _end_with(lifeline: Connection) -> None:
    """Have the kernel end this rank when the other end of a pipe closes, by a signal whose default is just that."""
    fcntl.fcntl(lifeline.fileno(), fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(lifeline.fileno(), fcntl.F_SETFL, flags | os.O_ASYNC)
    if lifeline.poll():  # It closed before the kernel was told.
        os._exit(1)


def _settle(assignment: Assignment) -> None:
    os.setsid()  # So that what this rank starts can be killed with it.
    log = os.open(assignment.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Runs in C, so it answers also while Python waits inside a collective.
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
    faulthandler.enable(file=log)
    rank, world_size = str(assignment.rank), str(assignment.world_size)
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE=world_size,
        LOCAL_WORLD_SIZE=world_size,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(assignment.port),
        # As under torchrun: the store is served from outside, every rank is its client.
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
        **assignment.env,
    )


def _call(assignment: Assignment) -> Any:
    import torch

    torch.set_num_threads(1)
    if assignment.init:
        # Later than the harness's own limit, which says more about who waits for whom.
        limit = timedelta(seconds=assignment.timeout + 60)
        torch.distributed.init_process_group("gloo", timeout=limit)
    func, args = pickle.loads(assignment.call)
    return func(*args)


def _describe(error: BaseException) -> bytes:
    summary = "".join(traceback.format_exception_only(error)).strip()
    text = "".join(traceback.format_exception(error))
    try:
        described = pickle.dumps(Failure(summary, text, error))
        pickle.loads(described)  # Some exceptions pickle and then do not come back.
    except Exception:
        return pickle.dumps(Failure(summary, text, None))
    return described
