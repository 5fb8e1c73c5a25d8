"""What probes cost: training with them against training without, alternating.

    .venv/bin/python tools/bench/probes.py [--rounds 3] [--steps 200] [--every 100] [key=value ...]

One process of one thread, 8 layers x 128, from the start of the first step (the probe before it included) to the end of
the last, as processor time and as time on the clock; the pictures for TensorBoard are part of it. A ratio is taken
within each round; the median is printed, with the lowest and the highest, and what other processes used of the machine
meanwhile, in cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train import processor
from train_case import busy_seconds

from megaqk.config.yaml_text import format_yaml

CASE_LIMIT = 7200


def configuration(folder: Path, steps: int, every: int) -> str:
    """The run of a case."""
    return format_yaml(
        {
            "run": {"dir": str(folder / "run")},
            "model": {"preset": "gpt", "num_layers": 8, "hidden_size": 128, "num_heads": 4},
            "data": {"text": "builtin", "vocab_size": 2048, "cache_dir": str(folder.parent / "cache")},
            "training": {
                "steps": steps,
                "global_batch_size": 16,
                "micro_batch_size": 8,
                "sequence_length": 256,
            },
            "checkpoint": {"every": 0},
            "evaluation": {"batches": 0},
            "probes": {"every": every},
        }
    )


def train(config: str, overrides: list[str]) -> None:
    """Train in this process and print what its steps took."""
    from megaqk import cli
    from megaqk.training import hooks, peak
    from megaqk.training.trainer import Hook, Trainer

    class Clock(Hook):
        def start(self, run: Trainer) -> None:
            self.began = self.now()

        def end(self, run: Trainer) -> None:
            wall, own, busy = (now - then for now, then in zip(self.now(), self.began, strict=True))
            print(json.dumps({"wall": wall, "own": own, "others": max(0.0, busy - own) / wall}), flush=True)

        def now(self) -> tuple[float, float, float]:
            return time.perf_counter(), time.process_time(), busy_seconds()

    defaults = hooks.default_hooks
    hooks.default_hooks = lambda: [Clock(), *defaults()]
    peak.measured_peak = lambda *_, **__: 1e9  # what it measures is no part of this
    sys.exit(cli.main(["pretrain", config, *overrides]))


def measured(folder: Path, steps: int, every: int, overrides: list[str]) -> dict[str, Any]:
    """The same in a process of its own."""
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(configuration(folder, steps, every))
    command = [sys.executable, __file__, "--case", str(config), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=CASE_LIMIT, check=False, env=environment)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
    [line] = [line for line in run.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)  # type: ignore[no-any-return]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    if arguments.case:
        train(arguments.case, arguments.overrides)
    print(
        f"{processor()}, {os.cpu_count()} processors, {arguments.rounds} rounds of {arguments.steps} steps", flush=True
    )
    ratios: dict[str, list[float]] = {"own": [], "wall": []}
    others = []
    with tempfile.TemporaryDirectory(prefix="megaqk-probes-") as name:
        measured(Path(name, "warm"), 1, 0, arguments.overrides)  # prepares the data
        for number in range(arguments.rounds):
            cases = {}
            for every in (0, arguments.every)[:: 1 if number % 2 == 0 else -1]:
                folder = Path(name, f"{number}-{every}")
                cases[every] = measured(folder, arguments.steps, every, arguments.overrides)
                others.append(cases[every]["others"])
            for kind, values in ratios.items():
                values.append(cases[arguments.every][kind] / cases[0][kind])
    print("with probes over without: processor time", spread(ratios["own"]), "clock", spread(ratios["wall"]))
    print("cores of others", spread(others))


if __name__ == "__main__":
    main()
