"""`megaqk check`: refuse a configuration, or show the run that it describes, without starting a process."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from megaqk.config.loading import add_config_arguments, load_config
from megaqk.errors import UserError
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch

if TYPE_CHECKING:
    from megaqk.training.zero_memory import Memory

GPU_GIB = {
    "B200": 178,
    "H200": 140,
    "H100-80GB": 79,
    "A100-80GB": 79,
    "A100-40GB": 39,
    "L40S": 44,
    "L4": 22,
    "A10": 22,
    "RTX-4090": 23,
    "V100-32GB": 31,
    "V100-16GB": 15,
}
"""Whole GiB of what nvidia-smi reports as the memory of a GPU."""

USABLE = 0.9
"""Of a GPU's memory: the estimate is good to 10 %, and CUDA, NCCL and fragmentation have their share."""

# Each alone, as far as the run allows it.
_REMEDIES = (
    ("training.recompute=selective",),
    ("training.recompute=full",),
    ("deepspeed.immediate_grad_update=true",),
    ("parallel.zero_stage=2",),
    ("parallel.zero_stage=3",),
    ("deepspeed.offload_optimizer=cpu", "optimizer.implementation=deepspeed_cpu"),
)


def add_check_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "check",
        help="check a configuration offline and show the resolved plan",
        usage="megaqk check CONFIG --world-size N [--gpu NAME | --memory GIB] [key=value ...]",
        description="Check a configuration for a number of processes, and its data; a small text is prepared and kept. "
        "Prints the plan of the run: ranks, layers per pipeline stage, parameters, groups with their multipliers over "
        "time, memory. Exit status 2 and one line if it is refused, or does not fit the GPU that is named.",
    )
    add_config_arguments(parser)
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="number of processes")
    fit = parser.add_mutually_exclusive_group()
    fit.add_argument("--gpu", metavar="NAME", help=f"whether it fits: {', '.join(GPU_GIB)}")
    fit.add_argument("--memory", type=float, metavar="GIB", help="whether it fits a GPU of so much memory")
    parser.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Run the command; exit status 0, or a `UserError` where the configuration or its data is refused."""
    if arguments.gpu not in (None, *GPU_GIB):
        raise UserError(f"--gpu = {arguments.gpu}: must be one of {', '.join(GPU_GIB)}; or give --memory GIB")
    if arguments.memory is not None and not 0 < arguments.memory < float("inf"):
        raise UserError(f"--memory = {arguments.memory:g}: must be a positive number of GiB")
    config = load_config(arguments.config, arguments.overrides)
    world = World(config, Launch(world_size=arguments.world_size))
    # Only now, since the model's modules import torch: a refusal of the configuration is immediate.
    from megaqk.corpus.prepare import left_to_the_start, prepare, prepares_quickly
    from megaqk.data.tokenizer import load_tokenizer
    from megaqk.model.decoder import parameter_inventory
    from megaqk.model.vocab_size import vocabulary_of
    from megaqk.optim.groups import plan_groups
    from megaqk.plan_text import memory_table, resolved_plan
    from megaqk.runtime.agreement import Solo
    from megaqk.runtime.device import choose_device
    from megaqk.training.checks import missing, open_inputs
    from megaqk.training.memory import estimate_memory

    if not (later := left_to_the_start(config)):
        vocabulary = open_inputs(config, Solo()).vocabulary
    elif prepares_quickly(config.data):
        vocabulary = vocabulary_of(config, prepare(config.data).vocab_size)
    else:
        tokenizer = config.data.tokenizer
        tokens = config.data.vocab_size if tokenizer is None else load_tokenizer(tokenizer).vocab_size
        vocabulary = vocabulary_of(config, tokens)
    parameters = parameter_inventory(config, rows=vocabulary.rows)
    groups, device = plan_groups(config, parameters), choose_device()
    print(resolved_plan(config, world, parameters, groups))
    capacity = GPU_GIB[arguments.gpu] if arguments.gpu else arguments.memory

    def stages(*overrides: str) -> "list[Memory]":
        """The memory of the run with more overrides."""
        changed = load_config(arguments.config, [*arguments.overrides, *overrides])
        there = World(changed, world.launch)
        cuda = capacity is not None or device.type == "cuda"
        return estimate_memory(changed, there, vocabulary, parameters, groups, cuda=cuda)

    print("\n" + memory_table(stages()))
    # It may be asked on another machine than the one that will run.
    later += [f"not on this machine: {line}" for line in missing(config, device)]
    if later:
        print("\n" + "\n".join(later))
    if capacity is not None:
        print("\n" + _fit(stages, config.training.micro_batch_size, capacity, arguments.gpu or "the GPU"))
    return 0


def _gib(amount: float) -> str:
    return f"{amount:.1f}" if amount >= 1 else f"{amount:.2g}"


def _fit(stages: "Callable[..., list[Memory]]", micro_batch: int, capacity: float, name: str) -> str:
    """Say that a run fits, or refuse it and say what would help.

    Args:
        stages: The memory of the run with more overrides.
        micro_batch: Its samples of a forward pass.
        capacity: The GPU's memory in GiB.
        name: What to call the GPU.

    Raises:
        UserError: If it does not fit.
    """

    def needed(*overrides: str) -> float:
        return max(memory.total for memory in stages(*overrides)) / 2**30

    need, usable = needed(), USABLE * capacity
    if need <= usable:
        planned = f"{_gib(usable)} that may be planned with ({USABLE:.0%} of {capacity:g})"
        return f"fits {name}: {_gib(need)} GiB of the {planned}"
    ways = []
    for words in (*((f"training.micro_batch_size={micro_batch // 2}",),) * (micro_batch > 1), *_REMEDIES):
        with suppress(UserError):  # not with this run
            ways.append((needed(*words), " ".join(words)))
    helpful = [f"{_gib(less)} with {words}" for less, words in sorted(ways) if less < 0.99 * need]
    raise UserError(
        f"memory = {_gib(need)} GiB: must be at most {_gib(usable)} on {name} ({USABLE:.0%} of {capacity:g}), "
        f"{_gib(need - usable)} too much; it is " + ", ".join([*helpful, "less with more processes"])
    )
