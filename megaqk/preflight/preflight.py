"""`megaqk preflight`: whether configuration, data and machines are fit for a run, in seconds and under its launcher."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaqk.config.loading import add_config_arguments, load_config
from megaqk.config.root import Config
from megaqk.errors import AgreedError, UserError
from megaqk.parallel.world import World
from megaqk.runtime.launch import read_launch
from megaqk.runtime.signals import stop_signals

if TYPE_CHECKING:
    from megaqk.preflight.machines import Machine
    from megaqk.runtime.pulse import Pulse

PATIENCE_SECONDS = 60.0
"""How long a measurement may take before who keeps the others waiting is named."""


def add_preflight_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "preflight",
        help="check configuration, data and machines under the launcher of a run",
        description="Check what a run needs on the machines that will run it: the configuration, the data on every "
        "node, the same versions everywhere, products by rank and connections by pair of nodes. Exit status 2 and a "
        "line that names the rank and its node where something is wrong.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--least",
        type=float,
        metavar="PART",
        help="what a rank or connection must reach of the median (default: 0.8 on GPUs, 0.5 on CPUs)",
    )
    parser.set_defaults(run=run_preflight, by_every_rank=True)


def run_preflight(arguments: argparse.Namespace) -> int:
    """Run the command; exit status 0, or a `UserError` on all ranks."""
    if arguments.least is not None and not 0 < arguments.least <= 1:
        raise UserError(f"--least = {arguments.least:g}: must be above 0 and at most 1")
    with stop_signals():
        return _run(load_config(arguments.config, arguments.overrides), arguments.least)


def _run(config: Config, least: float | None) -> int:
    world = World(config, read_launch())
    world.connect()
    # Only now: importing DeepSpeed looks for a device, which `connect` has settled.
    import torch.distributed as dist

    from megaqk.runtime.failure import failing_together
    from megaqk.runtime.logs import log_file, start_logging, stop_logging
    from megaqk.runtime.pulse import Pulse

    folder, pulse = Path(config.run.dir), Pulse()
    patience = min(PATIENCE_SECONDS, config.training.watchdog or PATIENCE_SECONDS)
    log = log_file(folder, world.rank)
    try:
        with failing_together(world.launch, world.objects, lambda _: None, pulse=pulse, patience=patience, log=log):
            world.agreed(lambda: start_logging(folder, world.rank, alone=world.size == 1))
            _inspect(config, world, least, pulse)
        dist.destroy_process_group()
    finally:
        stop_logging()
    return 0


def _inspect(config: Config, world: World, least: float | None, pulse: "Pulse") -> None:
    import torch

    from megaqk.preflight.findings import report, slow_nodes, slow_ranks
    from megaqk.preflight.machines import differences, nodes_of, this_machine
    from megaqk.preflight.measurements import exchange_rates, product_rate, reduction_rate

    machines = world.agreed(lambda: this_machine(config, world.device))
    _refuse(differences(machines))
    try:
        later = _open_data(config, world)
        nodes = nodes_of(machines)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.training.precision]
        with pulse.steps():
            rates = world.allgather(product_rate(world.device, dtype))
            pairs, reduction = exchange_rates(world, list(nodes.values()), pulse), 0.0
            if world.size > 1:
                reduction = min(world.allgather(reduction_rate(world)))
    except AgreedError as error:
        raise _with_host(error, machines) from error
    if world.rank == 0:
        print("\n\n".join([report(machines, rates, pairs, reduction), *later]))
        sys.stdout.flush()
    least = least or (0.8 if world.device.type == "cuda" else 0.5)
    _refuse([*slow_ranks(rates, machines, least), *slow_nodes(pairs, list(nodes), least)])


def _open_data(config: Config, world: World) -> list[str]:
    from megaqk.corpus.prepare import left_to_the_start
    from megaqk.training.checks import check_device, open_inputs

    world.agreed(lambda: check_device(config, world.device))
    if not (later := world.first_does(lambda: left_to_the_start(config))):
        open_inputs(config, world)
    return later


def _refuse(lines: Sequence[str]) -> None:
    # All ranks have the same lines.
    if lines:
        raise AgreedError(lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""))


def _with_host(error: AgreedError, machines: "Sequence[Machine]") -> AgreedError:
    """The same, with the name of the node behind that of the rank."""
    return AgreedError(
        re.sub(r"\(rank (\d+)\)$", lambda rank: f"(rank {rank[1]} on {machines[int(rank[1])].host})", str(error))
    )
