"""QK-clip (Kimi K2, arXiv 2507.20534): heads whose logits have grown past a threshold are scaled back to it."""

from contextlib import ExitStack
from functools import partial
from math import prod
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megaqk.probing.attention_statistics import largest_logits
from megaqk.training.engine import TrainingEngine
from megaqk.training.fragments import publish
from megaqk.training.optimizer_state import local_shape, named_fragments
from megaqk.training.trainer import Hook, Step, Trainer


def shrink_factors(maxima: Tensor, threshold: float, kv_heads: int) -> tuple[Tensor, Tensor]:
    """What the weights of each head are multiplied by so that its logits shrink by its gamma.

    gamma is threshold / maximum where that is above the threshold, and exactly 1 elsewhere, also where it is negative.
    Key heads take the root of the smallest gamma of their query heads, and each of these what is left of its own.

    Args:
        maxima: Largest logits (layers, heads).
        threshold: What they may reach.
        kv_heads: Number of key heads.

    Returns:
        Factors of the query heads (layers, heads) and of the key heads (layers, kv heads).
    """
    gamma = torch.where(maxima > threshold, threshold / maxima, 1.0)
    group = maxima.shape[1] // kv_heads
    key = gamma.view(-1, kv_heads, group).amin(2).sqrt()
    return gamma / key.repeat_interleave(group, dim=1), key


class QkClip(Hook):
    """Watches the logits of each step, and scales weights after it; before anything that looks at the weights.

    Records, by way of `Trainer.signals`, the largest logit of the step and how many heads were above the threshold.
    """

    def __init__(self) -> None:
        self._watching = ExitStack()
        self._shown: dict[str, Tensor] = {}
        self._largest: dict[int, Tensor] = {}  # of this rank's heads in the step that is being taken, by layer

    def start(self, run: Trainer) -> None:
        """Begin to watch, if there is a threshold."""
        if run.config.qk_clip.threshold is not None:
            for kind in ("documents", "query", "key"):
                self._watching.enter_context(run.engine.context.taps.watching(kind, partial(self._see, kind)))

    def close(self) -> None:
        """Watch no more."""
        self._watching.close()

    def _see(self, kind: Literal["documents", "query", "key"], layer: int, activation: Tensor) -> None:
        if not torch.is_grad_enabled():
            return  # an evaluation
        self._shown[kind] = activation
        if kind == "key":
            shown, self._shown = self._shown, {}
            largest = largest_logits(shown["query"], shown["key"], shown.get("documents"))
            self._largest[layer] = torch.maximum(self._largest.get(layer, largest), largest)

    def step(self, run: Trainer, step: Step) -> None:
        """Clip after a step that was taken."""
        del step
        threshold, engine = run.config.qk_clip.threshold, run.engine
        if threshold is None:
            return
        # The one moment that waits for the device.
        maxima = self._of_all_heads(engine).cpu()
        above = 0 if engine.skipped else int((maxima > threshold).sum())
        run.signals |= {"qk_clip/max_logit": float(maxima.max()), "qk_clip/clipped_heads": above}
        if above:
            _scale(engine, *shrink_factors(maxima, threshold, run.config.model.kv_heads))

    def _of_all_heads(self, engine: TrainingEngine) -> Tensor:
        """The largest logits over the global batch (layers, heads), the same on every rank."""
        model, tp = engine.config.model, engine.world.tp
        heads = tp.share(model.num_heads)
        maxima = torch.full((model.num_layers, model.num_heads), -torch.inf, device=engine.world.device)
        for layer, largest in self._largest.items():
            maxima[layer, tp.rank * heads : (tp.rank + 1) * heads] = largest
        self._largest = {}
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        return maxima


@torch.no_grad()
def _scale(engine: TrainingEngine, query: Tensor, key: Tensor) -> None:
    """Multiply the heads' rows in the optimizer's masters, and give the model the result; every rank must call it."""
    by_projection: dict[str, list[list[float]]] = {"query": query.tolist(), "key": key.tolist()}
    tp = engine.world.tp
    for name, fragment in named_fragments(engine):
        role = engine.infos[name].role
        if role.projection not in by_projection or role.layer is None:
            continue
        factors = by_projection[role.projection][role.layer]
        heads = tp.share(len(factors))
        size = prod(local_shape(fragment.parameter, engine)) // heads
        flat = fragment.of(fragment.master)
        for head, factor in enumerate(factors[tp.rank * heads : (tp.rank + 1) * heads]):
            # A head is a range of the flattened shard, of which the fragment has a part.
            first, end = (min(max(place, fragment.first), fragment.end) for place in (head * size, (head + 1) * size))
            if factor != 1:
                flat[first - fragment.first : end - fragment.first].mul_(factor)
    publish(engine.engine.optimizer)
