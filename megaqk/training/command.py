"""The `pretrain` command."""

import argparse
import time
from pathlib import Path
from typing import Any

from megaqk.config.loading import add_config_arguments, load_config
from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch, read_launch
from megaqk.runtime.signals import ignore_stop_signals, stop_signals
from megaqk.runtime.supervisor import count_processes, supervise


def add_pretrain_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a configuration, resuming from its newest checkpoint",
        usage="megaqk pretrain CONFIG [--processes N] [key=value ...]",
        description="Train, in one process, or in N that are started on this machine. Under srun, mpirun, torchrun or "
        "deepspeed each process runs this command without --processes. Exit status: 0 finished, 2 the user must mend "
        "something, 75 stopped (the same command goes on), 76 diverged, anything else a fault.",
    )
    add_config_arguments(parser)
    parser.add_argument("--processes", metavar="N", help="processes to start on this machine; auto: one a GPU")
    parser.set_defaults(run=run, by_every_rank=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; configuration problems are found before anything heavy is imported or started."""
    began, launch = time.monotonic(), read_launch()
    if arguments.local_rank not in (None, launch.local_rank):
        raise UserError(f"--local_rank = {arguments.local_rank}: must be LOCAL_RANK = {launch.local_rank}")
    if arguments.processes is None:
        with stop_signals():
            return _run(load_config(arguments.config, arguments.overrides), launch, began)
    processes = count_processes(arguments.processes, launch)
    # What is refused without a process is refused once.
    World(load_config(arguments.config, arguments.overrides), Launch(world_size=processes))
    return supervise(["pretrain", arguments.config, *arguments.overrides], processes)


def _run(config: Config, launch: Launch, began: float) -> int:
    world = World(config, launch)
    world.connect()
    # Only now: importing DeepSpeed looks for a device, which `connect` has settled.
    import torch.distributed as dist

    from megaqk.runtime.failure import failing_together
    from megaqk.runtime.logs import log_file, start_logging, stop_logging
    from megaqk.runtime.pulse import Pulse
    from megaqk.training.checks import check_device
    from megaqk.training.hooks import default_hooks
    from megaqk.training.run_folder import RunFolder
    from megaqk.training.trainer import Trainer

    folder, pulse = RunFolder(Path(config.run.dir)), Pulse()
    try:
        with failing_together(
            world.launch,
            world.objects,
            folder.note_failure,
            pulse=pulse,
            patience=config.training.watchdog,
            log=log_file(folder.path, world.rank),
        ):
            world.agreed(lambda: check_device(config, world.device))
            owner = world.first_does(folder.claim)
            world.agreed(lambda: folder.check_shared(owner))
            start_logging(folder.path, world.rank, alone=world.size == 1)
            trainer = Trainer(config, world, folder, default_hooks(), pulse=pulse, began=began)
            try:
                trainer.train()
            finally:
                trainer.close()
            world.allgather(None)  # none leaves while another may still need it
        # Not after a failure: it may wait for ranks that are gone.
        dist.destroy_process_group()
    finally:
        stop_logging()
        folder.release()
        if world.size > 1:
            ignore_stop_signals()
    return 0
