"""`megaqk runs`: how all runs below a folder stand."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from megaqk.errors import UserError
from megaqk.training.run_summary import RunSummary, find_runs, summarise

_TITLES = ("run", "state", "step", "loss", "valid loss", "tokens/s", "left", "last news", "last words")


def add_runs_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "runs",
        help="a table of the runs below a folder",
        description="Show state, step, losses, speed, time left and last words of each run below a folder, from its "
        "own files.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="searched for runs, to any depth")
    parser.add_argument("--json", action="store_true", help="a list of objects, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    folder: Path = arguments.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: must be a folder, below which runs are")
    runs = [summarise(path, str(path.relative_to(folder))) for path in find_runs(folder)]
    if arguments.json:
        print(json.dumps([asdict(summary) for summary in runs], indent=1))
    elif runs:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(table(runs, width)))
    else:
        print(f"no runs below {folder}")
    return 0


def table(runs: Sequence[RunSummary], width: int | None) -> list[str]:
    """The lines of the table, with its titles.

    Args:
        runs: What to show, in this order.
        width: Where lines are cut; None shows all of the last words.
    """
    rows = [_TITLES, *(_cells(summary) for summary in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        # Numbers end at one place, words begin there.
        padded = [
            cell.rjust(room) if 2 <= index < len(row) - 1 else cell.ljust(room)
            for index, (cell, room) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded)[:width].rstrip())
    return lines


def _cells(summary: RunSummary) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def duration(seconds: float | None) -> str:
        return "-" if seconds is None else str(timedelta(seconds=round(seconds)))

    return (
        summary.run,
        summary.state,
        f"{number(summary.step, 'd')}/{number(summary.steps, 'd')}",
        number(summary.loss, ".4f"),
        number(summary.valid_loss, ".4f"),
        number(summary.tokens_per_second, ",.0f"),
        duration(summary.seconds_left),
        "-" if summary.news_seconds is None else f"{duration(summary.news_seconds)} ago",
        summary.last_words,
    )
