"""The standard logger `megaqk` by rank: the first rank's on the terminal, every rank's in a file; and less noise."""

import faulthandler
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from megaqk.runtime.streams import lossy_stream

LOGGER = "megaqk"
STEPS = "megaqk.steps"
"""The logger of what a progress bar says too: it stays off a terminal that shows the bar."""


class _TerminalHandler(logging.Handler):
    """Lines on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record at once, newline included: ranks share the stream, and lines must not be cut."""
        steps = record.name == STEPS
        if steps and sys.stderr.isatty():
            return
        tqdm.write(f"{'' if steps else 'megaqk: '}{record.getMessage()}\n", file=sys.stderr, end="")
        sys.stderr.flush()


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say nothing: where a disk is full, a traceback for each line would drown the line that says so."""


def log_file(run_dir: Path, rank: int) -> Path:
    """Where a rank logs."""
    return run_dir / "logs" / f"rank{rank}.log"


_terminal: TextIO | None = None


def write_terminal(line: str) -> None:
    """Write to the standard error that the process was started with, in one write: ranks share it."""
    stream = _terminal or sys.stderr
    stream.write(line)
    stream.flush()


def start_logging(run_dir: Path, rank: int, *, alone: bool = True) -> None:
    """Send the logger `megaqk` to the terminal (rank 0) and to `run_dir/logs/rank<n>.log` (every rank).

    Args:
        run_dir: `run.dir`.
        rank: This process.
        alone: Whether it is the only one. Of several, what libraries in C++ write when a job breaks, a page of each
            rank, goes to the file too, and so does all that ranks other than the first print.
    """
    path = log_file(run_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _FileHandler(path, delay=True, encoding="utf-8")
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(LOGGER)
    # Tracebacks of what ends a job go to the files alone, as debugging output.
    logger.handlers = [*([_TerminalHandler(logging.INFO)] if rank == 0 else []), lines]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if not alone:
        _divert(path, rank)


def _divert(path: Path, rank: int) -> None:
    global _terminal
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stderr.flush()
    if _terminal is None:
        _terminal = lossy_stream(os.dup(2))
    os.dup2(file, 2)
    if rank == 0:
        sys.stderr = _terminal
    else:
        sys.stdout.flush()
        os.dup2(file, 1)
        sys.stdout, sys.stderr = lossy_stream(1), lossy_stream(2)
    os.close(file)
    faulthandler.enable(file=2)


def stop_logging() -> None:
    """Close the files."""
    logger = logging.getLogger(LOGGER)
    for handler in logger.handlers:
        with suppress(OSError):
            handler.close()
    logger.handlers = []
    logger.propagate = True


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow standard output, unless MEGAQK_VERBOSE is set. Errors and warnings go to standard error as ever."""
    if os.environ.get("MEGAQK_VERBOSE"):
        yield
        return
    with redirect_stdout(io.StringIO()):
        yield
