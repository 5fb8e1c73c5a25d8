"""Speed of training, as ratios of runs on the same machine in the same minutes.

One process with two threads against transformers' models with torch's AdamW at the same shape, plain and compiled, at
two and at eight micro-batches a step; two processes of one thread (tensor, pipeline or data parallel) against that one
process; and what the multiplier and the metrics cost.

Rounds alternate between all cases, each in processes of its own. Steps during which other processes used more than
`OTHERS_LIMIT` of a core do not count. A ratio is taken within each round; the median of the rounds is printed, with
the lowest and the highest, and says nothing where none is left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train_case import MICRO_BATCH_SIZE, SEQUENCE_LENGTH, SHAPE

CASE_PROGRAM = Path(__file__).with_name("train_case.py")
CASE_LIMIT = 600
OTHERS_LIMIT = 0.12
"""Cores that other processes may use during a step that counts."""

FOOTNOTE = """\
Not measured here, but with an earlier version on two cores of an EPYC with AVX-512 (Zen 4), Llama, fp32: in one process
at two micro-batches picotron ran at 1.14x (1.10-1.27) of megaqk's speed; in two processes of one thread megaqk ran at
1.22x of picotron's speed with tensor 2, 1.08x with pipeline 2, 1.00x with data 2."""


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        implementation: `megaqk`, `transformers` or `transformers-compiled`.
        preset: `gpt` or `llama`.
        micro_batches: Of one step, over all processes.
        processes: Ranks that share the threads.
        options: Further arguments of `train_case.py`.
        against: Rows whose time is divided by this one's.
    """

    implementation: str
    preset: str
    micro_batches: int = 8
    processes: int = 1
    options: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


def all_cases(overrides: Sequence[str] = (), variants: Sequence[str] = ()) -> dict[str, Case]:
    """Every row by name.

    Args:
        overrides: `key=value` of our configuration, for every row of megaqk.
        variants: Each `key=value ...` adds a row beside each row of one process.
    """
    cases = {}
    common = _settings(overrides)
    for preset in ("gpt", "llama"):
        for count in (2, 8):
            shape = f"{preset}, {count} micro-batches"
            plain, compiled, ours = f"transformers {shape}", f"transformers compiled {shape}", f"megaqk {shape}"
            cases[plain] = Case("transformers", preset, count)
            cases[compiled] = Case("transformers-compiled", preset, count, against=(plain,))
            cases[ours] = Case("megaqk", preset, count, options=common, against=(plain, compiled))
            for variant in variants:
                options = common + _settings(variant.split())
                cases[f"{ours}, {variant}"] = replace(cases[ours], options=options, against=(plain, compiled, ours))
        for axis in ("tensor", "pipeline", "data"):
            options = common if axis == "data" else (*common, f"--{axis}", "2")
            cases[f"megaqk {preset}, {axis} 2"] = Case("megaqk", preset, 8, 2, options, (ours,))
    return cases


def _settings(pairs: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for pair in pairs for word in ("--set", pair))


def measure(case: Case, steps: int, threads: int) -> dict[str, Any]:
    """Run one case in processes of its own; the threads are shared out among them."""
    each = max(1, threads // case.processes)
    launcher = [sys.executable]
    if case.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [*launcher, str(CASE_PROGRAM), case.implementation, case.preset, *case.options]
        command += ["--micro-batches", str(case.micro_batches)]
        command += ["--threads", str(each), "--steps", str(steps), "--result", str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(each)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CASE_LIMIT, check=False)
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured


def undisturbed(result: dict[str, Any]) -> list[float]:
    """Seconds of the steps that count."""
    return [step["seconds"] for step in result["steps"] if step["others"] <= OTHERS_LIMIT]


def ratios(rounds: Sequence[dict[str, dict[str, Any]]], name: str, against: str) -> list[float]:
    """Speed of a row over that of another, of each round in which both have steps that count."""
    pairs = [(undisturbed(results[against]), undisturbed(results[name])) for results in rounds]
    return [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs if theirs and ours]


def report(cases: dict[str, Case], rounds: Sequence[dict[str, dict[str, Any]]]) -> str:
    """The table."""
    width = max(map(len, cases))
    lines = [f"{'':{width}}{'parameters':>11}{'steps':>7}{'s/step':>9}{'tokens/s':>10}  speed (lowest-highest round)"]
    for name, case in cases.items():
        kept = [seconds for results in rounds for seconds in undisturbed(results[name])]
        taken = sum(len(results[name]["steps"]) for results in rounds)
        columns = f"{name:{width}}{rounds[0][name]['parameters'] / 1e6:10.1f}M{f'{len(kept)}/{taken}':>7}"
        if not kept:
            lines.append(f"{columns}  others were at work in every step")
            continue
        tokens = case.micro_batches * MICRO_BATCH_SIZE * SEQUENCE_LENGTH
        seconds = statistics.median(kept)
        compared = []
        for other in case.against:
            found = ratios(rounds, name, other) if other in cases else []
            if found:
                compared.append(
                    f"{statistics.median(found):.2f}x ({min(found):.2f}-{max(found):.2f}, {len(found)}) of {other}"
                )
        lines.append(f"{columns}{seconds:9.3f}{tokens / seconds:10,.0f}  {'; '.join(compared)}")
    for name in cases:
        overheads = [results[name]["overhead_seconds"] for results in rounds if "overhead_seconds" in results[name]]
        kept = [seconds for results in rounds for seconds in undisturbed(results[name])]
        if overheads and kept:
            overhead = statistics.median(overheads)
            share = overhead / statistics.median(kept)
            lines.append(f"multiplier and a metrics record in {name}: {overhead * 1e6:.0f} us, {share:.3%}")
    return "\n".join(lines)


def processor() -> str:
    """The processor's name for itself."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else "unnamed processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a case in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of all processes of a case together")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every case of megaqk")
    parser.add_argument("--variant", action="append", default=[], metavar="'KEY=VALUE ...'", help="a case beside it")
    arguments = parser.parse_args()
    cases = {name: case for name, case in all_cases(arguments.set, arguments.variant).items() if arguments.only in name}
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(arguments.rounds):
        results = {}
        # There and back again, so that a machine that slows down favours nobody.
        for name in list(cases)[:: 1 if number % 2 == 0 else -1]:
            print(f"round {number + 1}/{arguments.rounds}: {name}", file=sys.stderr, flush=True)
            results[name] = measure(cases[name], arguments.steps, arguments.threads)
        rounds.append(results)
    shape = ", ".join(f"{key} {value}" for key, value in SHAPE.items())
    print(f"{processor()}, {os.cpu_count()} processors, {arguments.threads} threads, {arguments.rounds} rounds")
    settings = f", {' '.join(arguments.set)}" if arguments.set else ""
    print(f"{shape}, micro-batches of {MICRO_BATCH_SIZE} x {SEQUENCE_LENGTH} tokens{settings or ', fp32'}")
    print(report(cases, rounds))
    print(FOOTNOTE)


if __name__ == "__main__":
    main()
