"""Gradient and update of an optimizer step, by projection and layer."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megaqk.model.parameters import ParameterRole
from megaqk.training.engine import TrainingEngine
from megaqk.training.fragments import base_optimizer
from megaqk.training.optimizer_state import named_fragments, owned_range

GRADIENT, WEIGHT, UPDATE = range(3)
"""Rows of `StepWatch.squares`."""

Part = tuple[str, int | None]
"""A projection and its layer; None where it stands outside the blocks."""


def part_of(role: ParameterRole) -> Part:
    """What a parameter is counted with."""
    return ("final_norm" if role.projection == "norm" and role.layer is None else role.projection), role.layer


class StepWatch:
    """Looks at the optimizer from inside a step: DeepSpeed has the gradients as fp32 nowhere else.

    It sees what the optimizer below DeepSpeed's own is given, all groups at once or one after the other, already
    clipped. Nothing waits for the device. While it looks, a copy of what is stepped at a time is kept.

    Args:
        engine: The engine; what it trains may be loaded anew.

    Attributes:
        parts: What is counted apart, in the order of the model.
        squares: Sums of squares on this rank, (3, parts) in fp64: of the clipped gradient, of the weights before the
            step, of their change. Over all ranks each element counts once.
    """

    def __init__(self, engine: TrainingEngine) -> None:
        self.parts: tuple[Part, ...] = tuple(dict.fromkeys(part_of(info.role) for info in engine.inventory))
        self._base = base_optimizer(engine.engine.optimizer)
        places = {part: place for place, part in enumerate(self.parts)}
        ranges: dict[Tensor, list[tuple[int, slice]]] = defaultdict(list)
        for name, fragment in named_fragments(engine):
            first, end = owned_range(fragment, name, engine)
            if first < end:
                at = fragment.at + first - fragment.first
                place = places[part_of(engine.infos[name].role)]
                ranges[fragment.master].append((place, slice(at, at + end - first)))
        self._slices = {master: [within for _, within in found] for master, found in ranges.items()}
        # On the device from the start, or each step that is watched would wait for it.
        self._places = {
            master: torch.tensor([place for place, _ in found], device=master.device)
            for master, found in ranges.items()
        }
        self._copies: dict[Tensor, Tensor] = {}
        self._handles: list[Any] = []
        self._device = next(iter(ranges)).device if ranges else engine.world.device

    def arm(self) -> None:
        """Look at the next step."""
        self.squares = torch.zeros(3, len(self.parts), dtype=torch.float64, device=self._device)
        self._handles = [
            self._base.register_step_pre_hook(self._before),
            self._base.register_step_post_hook(self._after),
        ]

    def disarm(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        masters = [one for group in optimizer.param_groups for one in group["params"] if one in self._slices]
        self._copies = {master: master.detach().clone() for master in masters}
        self._count(GRADIENT, masters, lambda master: master.grad)
        self._count(WEIGHT, masters, self._copies.__getitem__)

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for master, copy in self._copies.items():
            copy.sub_(master)
        self._count(UPDATE, list(self._copies), self._copies.__getitem__)
        self._copies = {}

    def _count(self, row: int, masters: Sequence[Tensor], tensor_of: Callable[[Tensor], Any]) -> None:
        flats = ((tensor_of(master).reshape(-1), self._slices[master]) for master in masters)
        norms = torch._foreach_norm([flat[within] for flat, found in flats for within in found], 2, torch.float64)
        if norms:
            places = torch.cat([self._places[master] for master in masters])
            self.squares[row].index_add_(0, places, torch.stack(norms).square())
