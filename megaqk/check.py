"""`megaqk check`: refuse a configuration, or show the run that it describes, without starting a process."""

import argparse
from typing import Any

from megaqk.config.loading import load_config
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch


def add_check_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "check",
        help="check a configuration offline and show the resolved plan",
        usage="megaqk check CONFIG --world-size N [key=value ...]",
        description="Check a configuration for a number of processes, and its data; a small text is prepared and kept. "
        "Prints the plan of the run: ranks, layers per pipeline stage, parameters, groups with their multipliers over "
        "time. Exit status 2 and one line if it is refused.",
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
    """Run the command; exit status 0, or a `UserError` where the configuration or its data is refused."""
    config = load_config(arguments.config, arguments.overrides)
    world = World(config, Launch(world_size=arguments.world_size))
    # Only now, since the model's modules import torch: a refusal of the configuration is immediate.
    from megaqk.corpus.prepare import prepares_quickly
    from megaqk.data.tokenizer import load_tokenizer
    from megaqk.model.decoder import parameter_inventory
    from megaqk.model.vocab_size import vocabulary_of
    from megaqk.optim.groups import plan_groups
    from megaqk.plan_text import resolved_plan
    from megaqk.runtime.agreement import Solo
    from megaqk.runtime.device import choose_device
    from megaqk.training.checks import missing, open_inputs

    if prepares_quickly(config.data):
        vocabulary, later = open_inputs(config, world, Solo()).vocabulary, []
    else:
        tokenizer = config.data.tokenizer
        tokens = config.data.vocab_size if tokenizer is None else load_tokenizer(tokenizer).vocab_size
        vocabulary = vocabulary_of(config, tokens)
        later = [f"data.text = {config.data.text}: is prepared at the start of the run, which refuses what it lacks"]
    parameters = parameter_inventory(config, rows=vocabulary.rows)
    print(resolved_plan(config, world, parameters, plan_groups(config, parameters)))
    # It may be asked on another machine than the one that will run.
    later += [f"not on this machine: {line}" for line in missing(config, choose_device())]
    if later:
        print("\n" + "\n".join(later))
    return 0
