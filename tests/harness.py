"""Run a function, or a command, on several real ranks, with a time limit that holds.

`run_distributed` forks its ranks from a server process that has imported torch and DeepSpeed already: a case costs a
fraction of a second instead of the seconds of those imports, and still gets processes without a past, so that nothing
a case leaves behind, least of all a hang, reaches the next one. CPU and gloo only; `fork=False` starts fresh
interpreters, for CUDA.

`run_torchrun` starts a command line the way a user does, with the same guarantees.

A case that raises, dies or hangs fails with the traceback of the rank that did, what every other rank was doing at that
moment, and what each had printed.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from tests.harness_rank import Assignment, Failure, Success, run_rank

PRELOAD = ["numpy", "torch", "torch.distributed", "deepspeed", "deepspeed.pipe", "pydantic", "yaml", "megaqk"]
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}

# How long the other ranks get to report too, once one has failed: theirs is often only the broken connection.
GRACE_SECONDS = 2.0
# How long a rank gets to write its stack down before it is killed.
DUMP_SECONDS = 1.0
OUTPUT_LINES = 60

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(PRELOAD)
_spawning = multiprocessing.get_context("spawn")
_libc = ctypes.CDLL(None)


class DistributedError(Exception):
    """A rank raised, died or hung. `rank` is the first that did, None for a hang; `__cause__` what it raised."""

    def __init__(self, message: str, rank: int | None = None):
        super().__init__(message)
        self.rank = rank


def run_distributed(
    func: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 60.0,
    init: bool = True,
    fork: bool = True,
    env: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call `func(*args)` on every rank of a new gloo world and return what each returned, by rank.

    Args:
        func: A function at the top level of a module; each rank imports it, and asks torch for its rank.
        world_size: Number of ranks. RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as by torchrun.
        *args: Its arguments; pickled, like the results.
        timeout: Seconds after which every rank is killed and the case fails.
        init: Whether torch's process group is made before the call; False leaves that to `func`.
        fork: Whether ranks are forked from the server, which hides CUDA from them; each is a new interpreter otherwise.
        env: Environment variables for the ranks alone.

    Raises:
        DistributedError: A rank raised, died or did not end in time.
    """
    call = pickle.dumps((func, args))
    with tempfile.TemporaryDirectory(prefix="megaqk-ranks-") as folder:
        # Held open here on a port the kernel chose: nobody can take it, and no rank has to outlive the others.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = []
        for number in range(world_size):
            assignment = Assignment(
                rank=number,
                world_size=world_size,
                port=store.port,
                call=call,
                log=str(_log(folder, number)),
                init=init,
                timeout=timeout,
                env=dict(env or {}),
            )
            ranks.append(_start(assignment, _forking if fork else _spawning))
        try:
            return _collect(ranks, timeout, folder)
        finally:
            for rank in ranks:
                _kill(rank.process.pid)
                rank.process.join()
                rank.outcome.close()
                rank.lifeline.close()
            for number in range(world_size):
                print(_output(folder, number), end="")


def run_torchrun(
    args: Sequence[str],
    nproc: int,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> "subprocess.CompletedProcess[str]":
    """Run `torchrun --nproc-per-node nproc args...` and return its exit status and output (both streams in one).

    Args:
        args: What follows torchrun's own options, such as `["-m", "megaqk", "pretrain", "conf.yaml"]`.
        nproc: Number of ranks.
        timeout: Seconds after which torchrun and every rank are killed and the case fails.
        env: Environment variables beside this process's own.
        check: Whether an exit status other than zero fails the case.

    Raises:
        DistributedError: The run did not end in time, or failed and `check` is set.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc), *args]
    # An abort makes each rank's faulthandler print its stack: that is how a hang is asked what it is doing.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **(env or {})}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_die_with_parent,
        )
        try:
            hung = _wait_or_abort(process, timeout)
        finally:
            _kill_tree(process)
        log.seek(0)
        output = log.read()
    print(output)
    if hung:
        raise DistributedError(f"{' '.join(args)}: still running after {timeout:g} s\n{_tail(output)}")
    if check and process.returncode != 0:
        raise DistributedError(f"{' '.join(args)}: exit status {process.returncode}\n{_tail(output)}")
    return subprocess.CompletedProcess(command, process.returncode, output)


@dataclass(frozen=True)
class _Rank:
    process: Any
    outcome: Connection
    # Nothing is ever written to it: its end, when this process goes away in whatever manner, ends the rank.
    lifeline: Connection


def _start(assignment: Assignment, context: Any) -> _Rank:
    outcome, send = context.Pipe(duplex=False)
    watch, lifeline = context.Pipe(duplex=False)
    # Not daemonic: a rank may start processes of its own, data loaders for one.
    process = context.Process(target=run_rank, args=(send, watch, assignment), name=f"rank {assignment.rank}")
    with _server_environment() if context is _forking else nullcontext():
        process.start()
    send.close()
    watch.close()
    return _Rank(process, outcome, lifeline)


def _collect(ranks: list[_Rank], timeout: float, folder: str) -> list[Any]:
    """Wait for every rank's result; stop at the first failure or when time is up."""
    deadline = time.monotonic() + timeout
    waiting = {rank.outcome: number for number, rank in enumerate(ranks)}
    results: dict[int, Any] = {}
    failures: dict[int, Failure] = {}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            outcome = _receive(connection, ranks[rank].process)
            if isinstance(outcome, Failure):
                failures[rank] = outcome
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            else:
                results[rank] = outcome.value
    if not failures and not waiting:
        return [results[rank] for rank in range(len(ranks))]
    stuck = sorted(waiting.values())
    for rank in stuck:
        with suppress(ProcessLookupError):
            os.kill(ranks[rank].process.pid, signal.SIGUSR1)
    if stuck:
        time.sleep(DUMP_SECONDS)
    # A rank that died without a word is the cause; that its peers lost the connection, and may say so first, is not.
    first = next((rank for rank, failure in failures.items() if not failure.traceback), next(iter(failures), None))
    headline = (
        f"rank {first} of {len(ranks)} failed: {failures[first].summary}"
        if first is not None
        else f"no result after {timeout:g} s from rank {', '.join(map(str, stuck))} of {len(ranks)}"
    )
    parts = [headline]
    parts += [f"--- rank {rank} failed\n{failure.traceback}" for rank, failure in failures.items()]
    parts += [f"--- rank {rank} returned" for rank in sorted(results)]
    parts += [f"--- rank {rank} was still running" for rank in stuck]
    parts += [_output(folder, rank, OUTPUT_LINES) for rank in range(len(ranks))]
    raise DistributedError("\n".join(parts), first) from (failures[first].error if first is not None else None)


def _receive(connection: Connection, process: Any) -> Success | Failure:
    try:
        outcome = pickle.loads(connection.recv_bytes())
    except EOFError:
        process.join(DUMP_SECONDS)
        return Failure(f"it died without a word, exit code {process.exitcode}", "", None)
    assert isinstance(outcome, Success | Failure)
    return outcome


@contextmanager
def _server_environment() -> Iterator[None]:
    """The server of ranks is started by the first of them, and keeps the environment of that moment."""
    before = dict(os.environ)
    os.environ.update(SERVER_ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _log(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank{rank}.log"


def _output(folder: str, rank: int, lines: int | None = None) -> str:
    log = _log(folder, rank)
    text = log.read_text(errors="replace") if log.exists() else ""
    return f"--- rank {rank} printed\n{_tail(text, lines) if lines else text}" if text else ""


def _tail(text: str, lines: int = 2 * OUTPUT_LINES) -> str:
    return "\n".join(text.splitlines()[-lines:])


def _kill(pid: int | None) -> None:
    """Kill a rank with everything it started: it leads a process group."""
    assert pid is not None
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _wait_or_abort(process: "subprocess.Popen[str]", timeout: float) -> bool:
    """Wait for torchrun; when time is up let every rank print its stack, and return True."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        # One after the other, as they share a stream; and torchrun, which ends the others once one has died, waits.
        process.send_signal(signal.SIGSTOP)
        for child in children:
            _abort(child)
        process.send_signal(signal.SIGCONT)
        return True
    return False


def _abort(process: psutil.Process) -> None:
    """Have a process print its stack and die, and wait until it has."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGABRT)
        deadline = time.monotonic() + 2 * DUMP_SECONDS
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.02)


def _kill_tree(process: "subprocess.Popen[str]") -> None:
    # torchrun's workers lead sessions of their own, so a process group would miss them.
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def _die_with_parent() -> None:
    """Have the kernel end torchrun, which ends its workers, if the test process goes away without cleaning up."""
    pr_set_pdeathsig = 1
    _libc.prctl(pr_set_pdeathsig, signal.SIGTERM)
