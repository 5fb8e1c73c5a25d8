"""The `megaqk study` commands."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from megaqk.corpus.encoding import available_cores
from megaqk.errors import UserError
from megaqk.runtime.text_table import table
from megaqk.studies.plan import Run, Study, load_study
from megaqk.studies.report import write_report
from megaqk.studies.runner import Runner
from megaqk.training.run_summary import summarise

_TITLES = ("index", "run", "state", "step", "valid loss")


def add_study_command(subparsers: Any) -> None:
    """Add the commands to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser("study", help="controlled studies: arms by seeds, run and reported")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, action, text in (
        ("run", run_command, "train every arm with every seed, passing over what is done; the same command goes on"),
        ("list", list_command, "the runs of a study, and how they stand"),
    ):
        command = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("study", metavar="STUDY", type=Path, help="a file such as configs/studies/qk_timing.yaml")
        command.add_argument("--size", required=True, help="one of the file's sizes")
        command.add_argument("--output", metavar="DIR", type=Path, help="default: runs/studies/<name>-<size>")
        command.add_argument("--arm", action="append", metavar="NAME", help="only this one; may be repeated")
        command.add_argument("--seed", action="append", metavar="N", type=int, help="only this one; may be repeated")
        overrides = command.add_argument("overrides", metavar="key=value", nargs="+", default=[], help="for all runs")
        overrides.required = False
        command.set_defaults(run=action)
        if name == "run":
            command.add_argument("--index", metavar="K", type=int, help="only run K of `list`, for an array of jobs")
            command.add_argument(
                "--jobs", metavar="N", type=int, help="runs at a time; default: what GPUs or cores allow"
            )
    report = actions.add_parser(
        "report",
        help="a page, a text, figures and numbers of a study",
        description="Write report.html, report.md, report.json and figures/ of a study, finished or not.",
    )
    report.add_argument("folder", metavar="DIR", type=Path, help="of the study, below which its runs are")
    report.add_argument("--output", metavar="DIR", type=Path, help="default: report in that folder")
    report.set_defaults(run=report_command)


def _chosen(arguments: argparse.Namespace) -> tuple[Study, list[Run]]:
    study = load_study(arguments.study, arguments.size, arguments.output, arguments.overrides)
    arms, seeds = list(study.spec.all_arms), list(dict.fromkeys(run.seed for run in study.runs))
    for option, given, allowed in (("--arm", arguments.arm, arms), ("--seed", arguments.seed, seeds)):
        for value in given or ():
            if value not in allowed:
                raise UserError(f"{option} = {value}: must be one of {', '.join(map(str, allowed))}")
    return study, [
        run for run in study.runs if run.arm in (arguments.arm or arms) and run.seed in (arguments.seed or seeds)
    ]


def list_command(arguments: argparse.Namespace) -> int:
    """Print the runs."""
    _, runs = _chosen(arguments)
    rows = [_TITLES]
    for index, run in enumerate(runs):
        found = summarise(run.folder, run.name) if run.folder.exists() else None
        loss = "-" if found is None or found.valid_loss is None else f"{found.valid_loss:.4f}"
        step = "-" if found is None or found.step is None else str(found.step)
        rows.append((str(index), run.name, found.state if found else "-", step, loss))
    print(table(rows))
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Train."""
    study, runs = _chosen(arguments)
    if arguments.index is not None:
        if not 0 <= arguments.index < len(runs):
            raise UserError(f"--index = {arguments.index}: must be from 0 to {len(runs) - 1}")
        runs = [runs[arguments.index]]
    gpus = _visible_gpus()
    fitting = max((len(gpus) or available_cores()) // study.processes, 1)
    jobs = fitting if arguments.jobs is None else arguments.jobs
    if jobs < 1 or (gpus and jobs > fitting):
        raise UserError(f"--jobs = {jobs}: must be {f'from 1 to {fitting}' if gpus else 'at least 1'}")
    return Runner(study, jobs, gpus).run(runs, _command(arguments))


def report_command(arguments: argparse.Namespace) -> int:
    """Write the report."""
    print(write_report(arguments.folder, arguments.output))
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """What runs the whole study."""
    output = [] if arguments.output is None else ["--output", str(arguments.output)]
    words = ["megaqk", "study", "run", str(arguments.study), "--size", arguments.size, *output, *arguments.overrides]
    return shlex.join(words)


def _visible_gpus() -> list[str]:
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return names.split(",")[:count] if names and count else [str(index) for index in range(count)]
