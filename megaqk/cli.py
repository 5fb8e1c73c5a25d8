"""The `megaqk` command: thin, each subcommand lives beside what it runs."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from megaqk import __version__
from megaqk.check import add_check_command
from megaqk.corpus.cli import add_commands as add_data_commands
from megaqk.errors import UserError
from megaqk.training.command import add_pretrain_command

HEAD_START_SECONDS = 5.0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of the parsed arguments that returns a status."""
    parser = argparse.ArgumentParser(prog="megaqk", description="Pretrain GPT and LLaMA models.")
    parser.add_argument("--version", action="version", version=f"megaqk {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pretrain_command(subparsers)
    add_check_command(subparsers)
    add_data_commands(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        0 on success, 2 where the user can mend what is wrong, which is then said in one line, 130 on an interrupt.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            if error.filename is None:  # no file that the user could mend
                raise
            error = UserError(f"{error.filename}: {error.strerror}")
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # All ranks find most mistakes alike. The first rank gets time to say it once and end the job; what
            # this rank alone has found it says itself.
            time.sleep(HEAD_START_SECONDS)
        # One write, newline included: several ranks share the stream, and lines must not be cut into one another.
        sys.stderr.write(f"megaqk: error: {error}" + (f" (rank {rank})\n" if rank else "\n"))
        sys.stderr.flush()
        return 2
    except KeyboardInterrupt:
        return 130
