"""Speed of training, as ratios of runs on the same machine in the same minutes.

One process with two threads against transformers' models with torch's AdamW at the same shape; two processes of one
thread (tensor, pipeline or data parallel) against that one process; and what the multiplier and the metrics cost.
Rounds alternate between all cases, and the best round of each counts: on a shared machine the rest is other people's
work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from train_case import MICRO_BATCH_SIZE, MICRO_BATCHES, SEQUENCE_LENGTH, SHAPE, TOKENS_PER_STEP

CASE_PROGRAM = Path(__file__).with_name("train_case.py")
CASE_LIMIT = 600


@dataclass(frozen=True)
class Case:
    """A row of the table; its ratio is its speed over that of the case named in `against`."""

    implementation: str
    preset: str
    processes: int = 1
    axes: dict[str, int] = field(default_factory=dict)
    against: str | None = None


CASES = {
    "transformers gpt": Case("transformers", "gpt"),
    "megaqk gpt": Case("megaqk", "gpt", against="transformers gpt"),
    "transformers llama": Case("transformers", "llama"),
    "megaqk llama": Case("megaqk", "llama", against="transformers llama"),
    "megaqk gpt, tensor 2": Case("megaqk", "gpt", 2, {"tensor": 2}, "megaqk gpt"),
    "megaqk gpt, pipeline 2": Case("megaqk", "gpt", 2, {"pipeline": 2}, "megaqk gpt"),
    "megaqk gpt, data 2": Case("megaqk", "gpt", 2, {}, "megaqk gpt"),
}


def measure(case: Case, steps: int, threads: int) -> dict[str, float]:
    """Run one case in processes of its own; the threads are shared out among them."""
    each = max(1, threads // case.processes)
    launcher = [sys.executable]
    if case.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [*launcher, str(CASE_PROGRAM), case.implementation, case.preset]
        command += ["--threads", str(each), "--steps", str(steps), "--result", str(result)]
        for axis, size in case.axes.items():
            command += [f"--{axis}", str(size)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(each)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CASE_LIMIT, check=False)
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
        measured: dict[str, float] = json.loads(result.read_text())
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of all processes of a case together")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    arguments = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if arguments.only in name}
    best: dict[str, dict[str, float]] = {}
    for number in range(arguments.rounds):
        for name, case in cases.items():
            print(f"round {number + 1}/{arguments.rounds}: {name}", file=sys.stderr, flush=True)
            measured = measure(case, arguments.steps, arguments.threads)
            best[name] = min(best.get(name, measured), measured, key=lambda result: result["seconds"])
    shape = ", ".join(f"{key} {value}" for key, value in SHAPE.items())
    batch = f"{MICRO_BATCHES} micro-batches of {MICRO_BATCH_SIZE} x {SEQUENCE_LENGTH} tokens"
    print(f"{shape}, {batch}, fp32, {arguments.threads} threads")
    print(f"{'':26}{'parameters':>12}{'s/step':>9}{'tokens/s':>10}  ratio")
    for name, case in cases.items():
        seconds = best[name]["seconds"]
        ratio = f"{best[case.against]['seconds'] / seconds:.2f}x of {case.against}" if case.against in best else ""
        parameters = f"{best[name]['parameters'] / 1e6:.1f}M"
        print(f"{name:26}{parameters:>12}{seconds:9.3f}{TOKENS_PER_STEP / seconds:10,.0f}  {ratio}")
    for name, result in best.items():
        if "overhead_seconds" in result:
            share = result["overhead_seconds"] / result["seconds"]
            print(f"multiplier and a metrics record in {name}: {result['overhead_seconds'] * 1e6:.0f} us, {share:.3%}")


if __name__ == "__main__":
    main()
