"""`megaqk evaluate`: models on tasks of lm-evaluation-harness."""

import argparse
import os
from pathlib import Path
from typing import Any

from megaqk.errors import UserError
from megaqk.evaluation.shipped_tasks import shipped_names


def add_evaluate_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "evaluate",
        help="accuracy of checkpoints on tasks of lm-evaluation-harness",
        description="Evaluate models on tasks of lm-evaluation-harness (docs/evaluation.md). What is found is written "
        "to RUN_DIR/evaluations/step-N.json, and for TensorBoard. Under `accelerate launch -m megaqk evaluate ...` "
        "each GPU takes a part of the work.",
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        type=Path,
        help="a checkpoint (RUN_DIR/checkpoints/step-N), a run (its newest one), or a Hugging Face folder",
    )
    parser.add_argument("--all", metavar="RUN_DIR", type=Path, help="all checkpoints of a run, but what is there")
    parser.add_argument(
        "--tasks",
        required=True,
        metavar="NAME,...",
        help=f"{', '.join(shipped_names())}, any other task of the harness, or the file of one",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--batch-size", type=int, metavar="N", default=16, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="the run's, if it is not where it was")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write what is found of one MODEL")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    names = list(dict.fromkeys(name for name in arguments.tasks.split(",") if name))
    _check(arguments, names)
    if set(names) <= set(shipped_names()):
        # Whatever looks like the name of a model or of data is a folder of this machine.
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from megaqk.evaluation.evaluating import evaluate_all, evaluate_models  # which imports all there is
        from megaqk.evaluation.harness import How
        from megaqk.runtime.device import device_named
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        line = f"megaqk evaluate: needs {package}, which is not installed: pip install 'megaqk[eval]'"
        raise UserError(line) from error
    how = How(
        device=device_named(arguments.device),
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        tokenizer=arguments.tokenizer,
    )
    if arguments.all is not None:
        evaluate_all(arguments.all, names, how)
    if arguments.models:
        evaluate_models(arguments.models, names, how, arguments.output)
    return 0


def _check(arguments: argparse.Namespace, names: list[str]) -> None:
    if not arguments.models and arguments.all is None:
        raise UserError("megaqk evaluate: nothing to evaluate: must have a MODEL or --all RUN_DIR")
    if not names:
        raise UserError(f"--tasks = {arguments.tasks}: must name at least one of {', '.join(shipped_names())}")
    if arguments.output is not None and (len(arguments.models) != 1 or arguments.all is not None):
        raise UserError(f"--output = {arguments.output}: must be for exactly one MODEL")
    for option, value in (("--limit", arguments.limit), ("--batch-size", arguments.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{option} = {value}: must be at least 1")
