"""Do all ranks have the same plan of groups? A rank that differs would hang or train with another group's rate."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from megaqk.errors import UserError
from megaqk.optim.groups import ParameterGroup

Summary = tuple[tuple[str, int, str], ...]
"""Of each group its name, its number of parameters and a digest of everything in it."""


def compare_groups_across_ranks(groups: Sequence[ParameterGroup], process_group: Any = None) -> None:
    """Stop where a rank has planned other groups than rank 0. A collective call; nothing to do in one process.

    Args:
        groups: The plan of this rank.
        process_group: A `torch.distributed` group that can carry objects; None means all ranks.

    Raises:
        UserError: A table of the groups in which the ranks differ, the same on every rank. Other files or other
            versions of the code on some node are the likely cause.
    """
    if not dist.is_initialized():
        return
    summaries: list[Summary | None] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(summaries, summarise(groups), group=process_group)
    table = difference_table([summary for summary in summaries if summary is not None])
    if table:
        raise UserError(f"the ranks have planned different parameter groups\n{table}")


def summarise(groups: Sequence[ParameterGroup]) -> Summary:
    """What is compared of a plan."""
    return tuple(
        (group.name, len(group.parameters), hashlib.sha256(repr(group).encode()).hexdigest()[:8]) for group in groups
    )


def difference_table(summaries: Sequence[Summary]) -> str:
    """The places in which plans differ.

    Args:
        summaries: One for each rank.

    Returns:
        A line for each place and each variant, with the ranks that have it; empty where all agree.
    """
    lines = []
    for place in range(max(map(len, summaries), default=0)):
        variants: dict[str, list[int]] = {}
        for rank, summary in enumerate(summaries):
            entry = "none"
            if place < len(summary):
                name, count, digest = summary[place]
                entry = f"{name} ({count} parameters, {digest})"
            variants.setdefault(entry, []).append(rank)
        if len(variants) > 1:
            lines += [f"group {place}: {entry:40} on ranks {_ranks(ranks)}" for entry, ranks in variants.items()]
    return "\n".join(lines)


def _ranks(ranks: Sequence[int], limit: int = 8) -> str:
    shown = ", ".join(map(str, ranks[:limit]))
    return shown if len(ranks) <= limit else f"{shown} and {len(ranks) - limit} more"
