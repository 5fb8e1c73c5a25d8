"""The `megaqk` command: thin, each subcommand lives beside what it runs."""

import argparse
import atexit
import os
import sys
import time
from collections.abc import Sequence

from megaqk import __version__
from megaqk.analysis.probe import add_probe_command
from megaqk.check import add_check_command
from megaqk.checkpoint.average import add_average_command
from megaqk.checkpoint.subcommands import add_checkpoint_command
from megaqk.corpus.arguments import add_commands as add_data_commands
from megaqk.errors import AGAIN, AgreedError, AlreadySaidError, user_error
from megaqk.evaluation.evaluate_command import add_evaluate_command
from megaqk.exchange.export_command import add_export_command
from megaqk.generation.generate_command import add_generate_command
from megaqk.preflight.preflight import add_preflight_command
from megaqk.runs import add_runs_command
from megaqk.runtime.launch import launched_rank, started_by_mpi
from megaqk.runtime.streams import lossy_stream
from megaqk.studies.study_commands import add_study_command
from megaqk.tensorboard import add_tensorboard_command
from megaqk.training.command import add_pretrain_command

HEAD_START_SECONDS = 5.0
"""How long a rank that is refused before the ranks can talk lets the first one say it and end the job."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of the parsed arguments that returns a status."""
    parser = argparse.ArgumentParser(prog="megaqk", description="Pretrain GPT and LLaMA models.")
    parser.add_argument("--version", action="version", version=f"megaqk {__version__}")
    # What DeepSpeed's launcher gives each process.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(by_every_rank=False)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pretrain_command(subparsers)
    add_check_command(subparsers)
    add_preflight_command(subparsers)
    add_data_commands(subparsers)
    add_tensorboard_command(subparsers)
    add_runs_command(subparsers)
    add_checkpoint_command(subparsers)
    add_average_command(subparsers)
    add_export_command(subparsers)
    add_probe_command(subparsers)
    add_study_command(subparsers)
    add_evaluate_command(subparsers)
    add_generate_command(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        0 on success, otherwise one of the statuses in `errors`; what ends it has then been said in one line.
    """
    if argv is None and sys.stderr is not None:
        sys.stderr = lossy_stream(2)
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes the overrides in one piece, and users put options between them.
    if any(word.startswith("-") for word in rest) or (not hasattr(arguments, "overrides") and rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
    except AlreadySaidError as error:
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write("megaqk: interrupted\n")
        return AGAIN
    except BrokenPipeError:
        # Whoever read the output has enough of it. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        refusal = user_error(error)
        if refusal is None:
            raise
        _refuse(str(refusal), refusal.status, common=arguments.by_every_rank and isinstance(refusal, AgreedError))
        return refusal.status
    return status


def _refuse(line: str, status: int, *, common: bool) -> None:
    if (rank := launched_rank()) and common:
        return
    if rank:
        # What this rank alone has found it says itself.
        time.sleep(HEAD_START_SECONDS)
        line += f" (rank {rank})"
    # One write, newline included: several ranks share the stream, and lines must not be cut into one another.
    sys.stderr.write(f"megaqk: error: {line}\n")
    sys.stderr.flush()
    if started_by_mpi():
        # MPI's end would wait for the other ranks, which wait for this one to end the job.
        atexit.register(os._exit, status)
