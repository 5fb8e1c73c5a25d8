"""The `checkpoint` commands: what a run has kept, whether it is whole, and what may go."""

import argparse
from pathlib import Path
from typing import Any


def add_checkpoint_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser("checkpoint", help="list, verify or prune the checkpoints of a run")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="a table of the checkpoints of a run, and why each is kept")
    verify = actions.add_parser("verify", help="hold every byte against its checksum; status 2 if one is damaged")
    verify.add_argument("--step", type=int, metavar="N", help="of one checkpoint alone")
    prune = actions.add_parser(
        "prune",
        help="remove what is not to be kept",
        description="Remove the checkpoints that the run would not keep, by its configuration or by these numbers.",
    )
    for key, what in (
        ("--keep", "newest checkpoints kept"),
        ("--keep-every", "those of steps that this divides are kept"),
        ("--keep-best", "those with the lowest validation loss kept"),
    ):
        prune.add_argument(key, type=int, metavar="N", help=what)
    prune.add_argument("--aside", action="store_true", help="remove what was set aside too")
    prune.add_argument("--dry-run", action="store_true", help="say what would go")
    for name, action in (("show", listing), ("verify", verify), ("prune", prune)):
        action.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run.dir of the run")
        action.set_defaults(run=run, action=name)


def run(arguments: argparse.Namespace) -> int:
    """Run one of them."""
    from megaqk.checkpoint import actions  # which imports torch

    getattr(actions, arguments.action)(arguments)
    return 0
