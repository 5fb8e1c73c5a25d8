"""Do all ranks hold the same list? If not, stop with a table instead of a hang."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from megaqk.errors import UserError


def require_same_list(entries: Sequence[str], what: str, process_group: Any = None) -> None:
    """Stop where ranks hold different lists. A collective call; nothing to do in one process.

    Args:
        entries: The list of this rank.
        what: What it is a list of, for the message.
        process_group: A `torch.distributed` group that can carry objects; None means all ranks.

    Raises:
        UserError: The table of the differences, the same on every rank.
    """
    if not dist.is_initialized():
        return
    gathered: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(gathered, list(entries), group=process_group)
    table = difference_table(gathered)
    if table:
        raise UserError(f"the ranks differ in their {what}\n{table}")


def difference_table(lists: Sequence[Sequence[str]]) -> str:
    """The places in which lists differ.

    Args:
        lists: One for each rank.

    Returns:
        A line for each place and each variant, with the ranks that have it; empty where all agree.
    """
    lines = []
    for place in range(max(map(len, lists), default=0)):
        variants: dict[str, list[int]] = {}
        for rank, entries in enumerate(lists):
            variants.setdefault(entries[place] if place < len(entries) else "none", []).append(rank)
        if len(variants) > 1:
            width = max(map(len, variants))
            lines += [f"{place:3}: {entry:{width}}  on ranks {_shown(ranks)}" for entry, ranks in variants.items()]
    return "\n".join(lines)


def _shown(ranks: Sequence[int], limit: int = 8) -> str:
    shown = ", ".join(map(str, ranks[:limit]))
    return shown if len(ranks) <= limit else f"{shown} and {len(ranks) - limit} more"
