"""How the attention logits of a run have changed between two checkpoints, and by what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megaqk.analysis.material import Snapshot
from megaqk.analysis.passes import BlockView
from megaqk.analysis.step_sizes import step_size_factors
from megaqk.errors import FaultError
from megaqk.model.attention import Attention
from megaqk.probing.pathwise import Corners, Decomposition, decompose

CLOSURE = 1e-10
"""Largest relative error with which the parts of a change may add up to it."""


@dataclass(frozen=True)
class Reading:
    """What attention reads at a checkpoint: its input (B, S, H), and what makes queries and keys of it."""

    x: Tensor
    attention: Attention


def reading_of(view: BlockView) -> Reading:
    """What the attention of a block reads."""
    return Reading(view.block.attention_norm(view.seen["attention_residual"]), view.block.attention)


def change_of_logits(before: Reading, after: Reading, view: BlockView, positions: Tensor) -> Decomposition:
    """The change of a layer's logits from one checkpoint to the next.

    Args:
        before: Of the first.
        after: Of the second.
        view: The layer in the forward pass of the second.
        positions: (B, S).
    """
    corners = [
        weights.attention.queries_and_keys(features.x, positions)
        for features, weights in ((before, before), (before, after), (after, before), (after, after))
    ]
    query, key = (Corners(*part) for part in zip(*corners, strict=True))
    return decompose(query, key, (view.seen["query"], view.seen["key"]), view.seen.get("documents"))


def pathwise_section(
    before: Snapshot,
    after: Snapshot,
    changes: Sequence[Decomposition],
    energies: Sequence[Sequence[float]],
    rates: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    """The entry of `analysis.json` for two checkpoints.

    Args:
        before: The first.
        after: The second.
        changes: By layer.
        energies: Of the residual stream that enters each layer, of both.
        rates: What steps were taken with; see `Material`.

    Raises:
        FaultError: The parts do not add up to the whole.
    """
    for layer, change in enumerate(changes):
        # Not a number is no closure either.
        if not change.closure() <= CLOSURE:
            raise FaultError(
                f"the parts of the change of the logits of layer {layer} from step {before.step} to {after.step} "
                f"miss the whole by {change.closure():.1e} of it, more than {CLOSURE:.0e}; no analysis was written"
            )
    by_head = [(change.root_mean_squares(), change.shares()) for change in changes]
    by_layer = [(whole.root_mean_squares(), whole.shares()) for whole in (change.together() for change in changes)]
    sizes, shares = by_layer[0]
    return {
        "from": before.step,
        "to": after.step,
        "step_size_factor": step_size_factors(after.config, before.step, after.step, rates),
        "residual_energy": [sum(pair) / len(pair) for pair in zip(*energies, strict=True)],
        **{name: [float(size[name]) for size, _ in by_layer] for name in sizes},
        "share": {name: [float(share[name]) for _, share in by_layer] for name in shares},
        "by_head": {
            **{name: [size[name].tolist() for size, _ in by_head] for name in sizes},
            "share": {name: [share[name].tolist() for _, share in by_head] for name in shares},
        },
        "closure": max(change.closure() for change in changes),
    }
