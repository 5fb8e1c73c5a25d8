"""`megaqk average`: the weights of several checkpoints as one."""

import argparse
from pathlib import Path
from typing import Any


def add_average_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "average",
        help="average the weights of several checkpoints into one",
        description="Average the weights of checkpoints of one model into a new checkpoint, which has no optimizer "
        "state: it is for evaluation and export, no run goes on from it.",
    )
    parser.add_argument(
        "checkpoints",
        metavar="CHECKPOINT",
        nargs="+",
        type=Path,
        help="RUN_DIR/checkpoints/step-N, or RUN_DIR for its newest",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--exponential",
        metavar="DECAY",
        type=float,
        help="weigh each checkpoint DECAY times as much as the next newer one, DECAY between 0 and 1; without: alike",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it."""
    from megaqk.checkpoint.averaging import average  # which imports torch

    average(arguments.checkpoints, arguments.output, arguments.exponential)
    return 0
