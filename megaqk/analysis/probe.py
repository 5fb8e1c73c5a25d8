"""`megaqk probe`: what the kept checkpoints of a run tell."""

import argparse
import json
from pathlib import Path
from typing import Any

from megaqk.analysis.timing_index import STABILITY_THRESHOLD, Thresholds, upper_layers
from megaqk.errors import UserError
from megaqk.runtime.files import written_whole

ANALYSIS_FILE = "analysis.json"


def add_probe_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "probe",
        help="analyse the checkpoints of a run",
        description="Measure sharpness, stability, causal reliance and the pathwise decomposition on the kept "
        "checkpoints of a run, in this process alone, and write RUN_DIR/analysis.json (docs/analysis.md).",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run.dir of the run")
    parser.add_argument(
        "--micro-batches", type=int, metavar="N", help="of the probe batch; default: the run's probes.micro_batches"
    )
    parser.add_argument("--initial", action="store_true", help="look at the weights before the first step too")
    parser.add_argument(
        "--heads", choices=("last", "all", "none"), default="last", help="steps at which reliance is measured by head"
    )
    parser.add_argument("--upper", type=int, metavar="N", help="first of the upper layers; default: the rule's, or L/2")
    parser.add_argument("--sharpness-threshold", type=float, metavar="X", help="default: half of the way of the run")
    parser.add_argument(
        "--stability-threshold", type=float, metavar="X", default=STABILITY_THRESHOLD, help="default: 0.9"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from megaqk.analysis.material import open_material  # which imports torch
    from megaqk.analysis.measuring import analyse
    from megaqk.analysis.summary import summary

    for key, value in (("sharpness", arguments.sharpness_threshold), ("stability", arguments.stability_threshold)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{key}-threshold = {value:g}: must be in [0, 1]")
    if arguments.micro_batches is not None and arguments.micro_batches < 1:
        raise UserError(f"--micro-batches = {arguments.micro_batches}: must be at least 1")
    material = open_material(arguments.run_dir, arguments.micro_batches, initial=arguments.initial)
    steps = [snapshot.step for snapshot in material.snapshots]
    result = analyse(
        material,
        heads={"all": steps, "last": steps[-1:], "none": []}[arguments.heads],
        upper=upper_layers(material.config, arguments.upper),
        thresholds=Thresholds(sharpness=arguments.sharpness_threshold, stability=arguments.stability_threshold),
        progress=lambda snapshot: print(f"step {snapshot.step} of {steps[-1]}", flush=True),
    )
    path = arguments.run_dir / ANALYSIS_FILE
    with written_whole(path) as beside:
        # What is not a number becomes null.
        plain = json.loads(json.dumps(result), parse_constant=lambda _: None)
        beside.write_text(json.dumps(plain) + "\n")
    print(f"\n{summary(plain)}\n\nwritten to {path}")
    return 0
