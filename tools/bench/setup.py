"""Seconds from a command to its first optimizer step, by part, for one process and for four under torchrun.

The parts are read off what a run leaves behind anyway: the time at which the first rank was started, that of its lock
on run.dir, and those of the lines in its log. The data are prepared beforehand. Rounds alternate between all cases, and
the median of each part counts; CPU seconds, of all processes together until the first step, say what another load of
the machine has not put in. `--tree` measures other checkouts beside each other.
"""

import argparse
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parents[2]
MARKS = {"parameters, tensor": "data, engine", "peak of the job": "peak", "step 1/": "first step"}
"""Of the first rank's log, with the name of the part that each line ends."""
PARTS = ("launcher", "imports, rendezvous", *MARKS.values(), "all", "CPU seconds")
LIMIT = 300.0


def run(tree: Path, processes: int, folder: Path, cache: Path) -> dict[str, float]:
    """Parts of one start, in seconds."""
    overrides = ["logging.every=1", f"run.dir={folder}", f"data.cache_dir={cache}"]
    overrides += [] if processes == 4 else ["parallel.tensor=1", "parallel.pipeline=1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    module = ["-m", "megaqk", "pretrain", str(tree / "configs/quickstart.yaml"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    began, ranks, cpu = time.time(), {}, {}
    process = subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *module],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = folder / "logs" / "rank0.log"
    while not (log.exists() and "step 1/" in log.read_text()):
        if process.poll() is not None or time.time() - began > LIMIT:
            sys.exit(f"{tree}: {processes} processes have come to no first step")
        for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            times = each.cpu_times()
            cpu[each.pid] = times.user + times.system
            if "megaqk" in each.cmdline() and (processes == 1 or each.pid != process.pid):
                ranks[each.pid] = each.create_time()
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ends = {"launcher": min(ranks.values()), "imports, rendezvous": (folder / ".lock").stat().st_mtime}
    for line in log.read_text().splitlines():
        for mark, part in MARKS.items():
            if mark in line and part not in ends:
                ends[part] = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    starts = dict(zip(ends, [began, *ends.values()], strict=False))
    parts = {part: max(0.0, end - starts[part]) for part, end in ends.items()}
    return {**parts, "all": ends["first step"] - began, "CPU seconds": sum(cpu.values())}


def processor() -> str:
    """Name of the processor and number of cores that are ours."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{match[1] if match else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tree", type=Path, action="append", help="a checkout; this one if none is given")
    arguments = parser.parse_args()
    trees = [tree.resolve() for tree in arguments.tree or [HERE]]
    cases = [(tree, processes) for processes in (1, 4) for tree in trees]
    measured: dict[tuple[Path, int], list[dict[str, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for number in range(arguments.rounds + 1):
            for tree, processes in cases:
                print(f"round {number}/{arguments.rounds}: {processes} of {tree}", file=sys.stderr, flush=True)
                parts = run(tree, processes, Path(folder) / f"{number}-{processes}-{tree.name}", cache)
                # The first round prepares the data, and has files read that later ones find in memory.
                measured[tree, processes] += [parts] * (number > 0)
    print(f"{processor()}; {arguments.rounds} rounds; median (least to most), seconds")
    for processes in (1, 4):
        print(f"\n{f'{processes} processes':22}" + "".join(f"{tree.name:>26}" for tree in trees))
        for part in PARTS:
            row = ""
            for tree in trees:
                values = [parts[part] for parts in measured[tree, processes]]
                spread = f"({min(values):.2f} to {max(values):.2f})"
                row += f"{statistics.median(values):10.2f} {spread:>15}"
            print(f"{part:22}{row}")


if __name__ == "__main__":
    main()
