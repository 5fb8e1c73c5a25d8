"""`megaqk export`: a checkpoint as a Hugging Face folder."""

import argparse
from pathlib import Path
from typing import Any


def add_export_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face folder",
        description="Write the model of a checkpoint so that transformers opens it without code of ours, in this "
        "process alone and a tensor at a time (docs/exchange.md).",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="RUN_DIR/checkpoints/step-N, or RUN_DIR for its newest"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the tensors; default: fp32"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="the run's tokenizer, if it is not where it was; none leaves it out"
    )
    parser.add_argument(
        "--remote-code",
        action="store_true",
        help="a model that no architecture of transformers computes gets a file with its own code",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from megaqk.checkpoint.reader import open_checkpoint  # which imports torch
    from megaqk.exchange.export import export

    checkpoint = open_checkpoint(arguments.checkpoint)
    result = export(
        checkpoint,
        arguments.output,
        dtype=arguments.dtype,
        remote_code=arguments.remote_code,
        tokenizer=arguments.tokenizer,
    )
    trusting = ", which needs trust_remote_code" if result.own_code else ""
    print(f"{checkpoint.path} is {result.architecture.class_name} in {arguments.output}{trusting}")
    return 0
