"""`megaqk tensorboard`: several runs in one TensorBoard, each under a name of its own."""

import argparse
import io
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from megaqk.errors import UserError
from megaqk.training.event_file import TENSORBOARD_FOLDER


def add_tensorboard_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "tensorboard",
        help="show runs in TensorBoard, one over the other",
        description="Start TensorBoard on the folders of some runs, each under the part of its path that tells it "
        "from the others. Ctrl-C ends it.",
    )
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", type=Path, help="run.dir of a run")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, help="default: 6006, or the next that is free; 0 takes any")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the process is told to stop."""
    names = name_runs(arguments.runs)
    # One folder with all runs in it, by name: TensorBoard's own list of named folders goes without its fast reader.
    with tempfile.TemporaryDirectory(prefix="megaqk-tensorboard-") as folder:
        for name, run_dir in names.items():
            link = Path(folder, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(run_dir / TENSORBOARD_FOLDER)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            url = _serve(folder, arguments.host, arguments.port)
            print(f"TensorBoard: {url} with {', '.join(names)}; Ctrl-C ends it", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    raise AssertionError


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of some runs, absolute, by the part of their paths that tells them apart.

    Raises:
        UserError: One of them is not the folder of a run, or lies in that of another.
    """
    for folder in folders:
        if not (folder / TENSORBOARD_FOLDER).is_dir():
            raise UserError(f"{folder}: must be the folder of a run (run.dir), with {TENSORBOARD_FOLDER}/ in it")
    runs = sorted({folder.resolve() for folder in folders})
    for outer in runs:
        for inner in runs:
            if outer in inner.parents:
                raise UserError(f"{inner}: lies in another of the runs, {outer}; show them apart")
    common = os.path.commonpath([run.parent for run in runs])
    return {str(run.relative_to(common)): run for run in runs}


def _serve(folder: str, host: str, port: int | None) -> str:
    """Start the server in a thread and return its address."""
    # A second to import.
    from tensorboard import default, program

    if not 0 <= (port or 0) < 1 << 16:
        raise UserError(f"--port = {port}: must be from 0 to 65535")
    try:
        with socket.socket(socket.getaddrinfo(host, None)[0][0]) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise UserError(f"--host = {host}: must be an address of this machine ({error.strerror})") from error
    server = program.TensorBoard(default.get_plugins())
    words = ["--logdir", folder, "--host", host] + ([] if port is None else ["--port", str(port)])
    server.configure(argv=["tensorboard", *words])
    try:
        with redirect_stderr(io.StringIO()):  # a note of TensorBoard's on itself
            return str(server.launch())
    except program.TensorBoardServerException as error:
        raise UserError(f"--host {host} --port {port}: {error.msg.splitlines()[0]}") from error
