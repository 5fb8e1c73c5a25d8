"""Cost of a checkpoint, as ratios to torch.save and torch.load of the same state in the same minutes.

    .venv/bin/python tools/bench/checkpoint.py [--sizes 10M,100M] [--rounds 5] [--folder .]

One process, fp32, weights and both moments: 12 bytes a parameter. For each size and round, one after the other, in
turns as to who comes first: a save of ours (how long training stands still for it, and how long it takes to its end),
torch.save with an fsync, then both read back, from the disk. Ours reads into the state of the run; torch.load alone
is timed, without copying. Either keeps its newest file alone. A ratio is taken within each round; the median is
printed, with the lowest and the highest, and what other processes used of the machine meanwhile, in cores.
500M needs 16 GiB of memory and 20 GB of disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from train import processor

CASE_PROGRAM = Path(__file__).with_name("checkpoint_case.py")
SIZES = ("10M", "100M", "500M")
CASE_LIMIT = 3600
COLUMNS = (
    *("Parameters", "State, GB", "Stall, s", "of torch.save"),
    *("Save, GB/s", "torch.save", "speed"),
    *("Load, GB/s", "torch.load", "speed"),
    *("Peak over state, saving", "loading", "Cores of others"),
)

Round = dict[str, float]


def spread(rounds: list[Round], value: Callable[[Round], float], unit: str = "") -> str:
    """The median over the rounds, with the lowest and the highest."""
    values = [value(one) for one in rounds]
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f}-{max(values):.2f})"


def row(size: str, rounds: list[Round]) -> str:
    """A line of the table."""
    gigabytes = rounds[0]["state_bytes"] / 1e9

    def bandwidth(seconds: str) -> str:
        return f"{gigabytes / statistics.median(one[seconds] for one in rounds):.2f}"

    columns = [
        size,
        f"{gigabytes:.2f}",
        f"{statistics.median(one['stall'] for one in rounds):.3f}",
        spread(rounds, lambda one: one["stall"] / one["torch_save"], "x"),
        bandwidth("save"),
        bandwidth("torch_save"),
        spread(rounds, lambda one: one["torch_save"] / one["save"], "x"),
        bandwidth("load"),
        bandwidth("torch_load"),
        spread(rounds, lambda one: one["torch_load"] / one["load"], "x"),
        *(spread(rounds, lambda one, key=key: 1 + one[key] / one["state_bytes"], "x") for key in ("saving", "loading")),
        spread(rounds, lambda one: one["others"]),
    ]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10M,100M", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=".", help="on the disk that is measured")
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} processors, {arguments.rounds} rounds\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for size in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="checkpoint-bench-") as folder:
            command = [sys.executable, str(CASE_PROGRAM), size, str(arguments.rounds), folder]
            run = subprocess.run(command, capture_output=True, text=True, timeout=CASE_LIMIT, check=False)
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
        print(row(size, json.loads(run.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
