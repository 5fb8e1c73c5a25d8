"""The `pretrain` command."""

import argparse
from pathlib import Path
from typing import Any

from megaqk.config.loading import load_config
from megaqk.parallel.world import World
from megaqk.runtime.launch import read_launch


def add_pretrain_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
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
    world = World(config, read_launch())
    world.connect()
    # Only now: importing DeepSpeed looks for a device, which `connect` has settled.
    import torch.distributed as dist

    from megaqk.runtime.failure import failing_together
    from megaqk.runtime.logs import start_logging, stop_logging
    from megaqk.training.checks import check_device
    from megaqk.training.hooks import default_hooks
    from megaqk.training.run_folder import RunFolder
    from megaqk.training.trainer import Trainer

    folder = RunFolder(Path(config.run.dir))
    try:
        with failing_together(world.launch, folder.note_failure):
            world.agreed(lambda: check_device(config, world.device))
            owner = world.first_does(folder.claim)
            world.agreed(lambda: folder.check_shared(owner))
            start_logging(folder.path, world.rank)
            trainer = Trainer(config, world, folder, default_hooks())
            try:
                trainer.train()
            finally:
                trainer.close()
        # Not after a failure: it may wait for ranks that are gone.
        dist.destroy_process_group()
    finally:
        stop_logging()
        folder.release()
    return 0
