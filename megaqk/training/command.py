"""The `pretrain` command."""

import argparse
import os
from typing import Any

from megaqk.config.checks import check_world
from megaqk.config.loading import load_config


def add_pretrain_command(subparsers: Any) -> None:
    """Add the command to the `megaqk` parser.

    Args:
        subparsers: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "pretrain",
        help="train a configuration, resuming from its newest checkpoint",
        description="Train. One process alone, or as many as the configuration asks for: "
        "torchrun --nproc-per-node N -m megaqk pretrain CONFIG [key=value ...]",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="for example training.steps=100")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; configuration problems are found before anything heavy is imported or started."""
    config = load_config(arguments.config, arguments.overrides)
    check_world(config, int(os.environ.get("WORLD_SIZE", "1")))
    import torch.distributed as dist

    from megaqk.runtime.device import check_precision, start_process_group

    check_precision(config.training.precision)
    process = start_process_group()
    # Only now: importing DeepSpeed looks for a device, which start_process_group has settled.
    from megaqk.training.trainer import Trainer

    try:
        trainer = Trainer(config, process)
        try:
            trainer.train()
        finally:
            trainer.close()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
