"""`megaqk check`: refuse a configuration, or show the run that it describes, without starting a process."""

import argparse
from typing import Any

from megaqk.config.checks import check_world
from megaqk.config.loading import load_config


def add_check_command(subparsers: Any) -> None:
    """Add the command to the `megaqk` parser.

    Args:
        subparsers: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "check",
        help="check a configuration offline and show the resolved plan",
        usage="megaqk check CONFIG --world-size N [key=value ...]",
        description="Check a configuration for a number of processes. Prints the plan of the run: ranks, layers per "
        "stage, parameters, groups with their multipliers over time. Exit status 2 and one line if it is refused.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    overrides = parser.add_argument(
        "overrides", metavar="key=value", nargs="+", default=[], help="overrides, such as parallel.tensor=2"
    )
    # With nargs="*" argparse settles for none as soon as CONFIG is followed by an option, and then refuses the rest.
    overrides.required = False
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="number of processes")
    parser.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: `config`, `overrides` and `world_size`.

    Returns:
        Exit status 0.

    Raises:
        UserError: Where the configuration is refused.
    """
    config = load_config(arguments.config, arguments.overrides)
    layout = check_world(config, arguments.world_size)
    # Only now, since the model's modules import torch: a refusal, of any command, is immediate.
    from megaqk.model.inventory import parameter_inventory
    from megaqk.optim.groups import plan_groups
    from megaqk.planning import resolved_plan, vocabulary_rows

    parameters = parameter_inventory(config, rows=vocabulary_rows(config))
    print(resolved_plan(config, layout, parameters, plan_groups(config, parameters)))
    return 0
