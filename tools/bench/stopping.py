"""How a run of four processes ends: for each way and moment the seconds until it has, its status and what it says.

    .venv/bin/python tools/bench/stopping.py [--only save]

A model of 20 million parameters, whose saves and evaluations take long enough to be met; tensor 2 x data 2, ZeRO-1.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from megaqk.config.yaml_text import format_yaml

WORLD, VICTIM, WATCHDOG = 4, 3, 10
MOMENTS = ("step", "save", "evaluation", "preparation")
REQUESTS = ("SIGINT", "SIGTERM", "SIGUSR1", "stop file")
CASES = [
    *((moment, way) for moment in MOMENTS for way in (*REQUESTS, "SIGKILL")),
    ("step", "time limit"),
    ("step", "SIGTERM twice"),
    ("step", "SIGSTOP"),
    ("save", "SIGSTOP"),
]


def configuration(folder: Path, cache: Path, moment: str, way: str) -> str:
    """The run of a case: what is to be met in it is most of it."""
    limit = 20.0 if way == "time limit" else None
    every = {"step": 0, "save": 1, "evaluation": 1, "preparation": 0}[moment]
    return format_yaml(
        {
            "run": {"dir": str(folder / "run")},
            "model": {"preset": "gpt", "num_layers": 6, "hidden_size": 512, "num_heads": 8},
            "parallel": {"tensor": 2},
            "data": {"text": "builtin", "vocab_size": 2048, "cache_dir": str(cache)},
            "training": {
                "steps": 10_000,
                "global_batch_size": 16,
                "micro_batch_size": 2,
                "sequence_length": 128,
                "watchdog": WATCHDOG,
                "time_limit": limit,
            },
            "schedule": {"warmup_steps": 2},
            "checkpoint": {"every": every if moment == "save" else 0},
            "evaluation": {"every": every if moment == "evaluation" else 0, "batches": 8},
            "logging": {"every": 1},
        }
    )


def reached(folder: Path, cache: Path, moment: str, output: str) -> bool:
    """Whether a run is where it is to be met."""
    match moment:
        case "save":
            return any((folder / "run" / "checkpoints").glob("*.partial"))
        case "evaluation":  # the record is written before it
            return len(re.findall(r"^step \d+/\d+  loss", output, re.MULTILINE)) > output.count("valid loss")
        case "preparation":
            return any(cache.glob("*/"))
    return "step 2/" in output


@contextmanager
def job(folder: Path, config: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], str]]]:
    log = folder / "output"
    command = [sys.executable, "-m", "megaqk", "pretrain", str(config), "--processes", str(WORLD)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
    try:
        yield process, log.read_text
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def send(process: "subprocess.Popen[bytes]", folder: Path, way: str) -> None:
    if way == "stop file":
        (folder / "run" / "stop").touch()
    elif way != "time limit":
        name, *again = way.split()
        [rank] = [p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == str(VICTIM)]
        rank.send_signal(getattr(signal, name))
        if again:
            time.sleep(1.1)
            rank.send_signal(getattr(signal, name))


def measure(shared: Path, moment: str, way: str) -> tuple[float, int, str]:
    """Seconds from the request (or the limit) to the end, the status, and the last line."""
    with tempfile.TemporaryDirectory(prefix="megaqk-stopping-") as name:
        folder = Path(name)
        cache = folder / "cache" if moment == "preparation" else shared
        config = folder / "config.yaml"
        config.write_text(configuration(folder, cache, moment, way))
        began = time.monotonic()
        with job(folder, config) as (process, output):
            while not reached(folder, cache, moment, output()):
                if process.poll() is not None or time.monotonic() - began > 120:
                    raise SystemExit(f"{moment}, {way}: not reached\n{output()}")
                time.sleep(0.01)
            time.sleep(0.2)
            send(process, folder, way)
            since = time.monotonic() if way != "time limit" else began + 20.0
            status = process.wait(240)
            seconds = time.monotonic() - since
            lines = [line for line in output().splitlines() if line.startswith("megaqk: ")]
            return seconds, status, lines[-1].removeprefix("megaqk: ") if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MOMENTS, help="cases of one moment")
    wanted = parser.parse_args().only
    with tempfile.TemporaryDirectory(prefix="megaqk-stopping-") as name:
        print(f"| During a | {'By':13} | Seconds | Status | Last line |\n| --- | --- | --- | --- | --- |", flush=True)
        for moment, way in CASES:
            if wanted in (None, moment):
                seconds, status, line = measure(Path(name), moment, way)
                print(f"| {moment} | {way:13} | {seconds:7.1f} | {status:6} | {line} |", flush=True)


if __name__ == "__main__":
    main()
