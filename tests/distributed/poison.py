"""A hook that plants faults in the numbers of a run."""

import math
from collections.abc import Collection
from typing import Any


class Poison:
    """Multiplies gradients in some steps; as `megaqk.training.trainer.Hook`, which is imported in the ranks.

    Args:
        steps: By their numbers.
        samples: By the first sample of their global batch.
        factor: Infinite: the gradient is lost.
        rank: The one rank that does so; None for all.
        left_out: Parts of the stream that the run begins without.
    """

    def __init__(
        self,
        steps: Collection[int] = (),
        samples: Collection[int] = (),
        factor: float = math.inf,
        rank: int | None = None,
        left_out: Collection[tuple[int, int]] = (),
    ) -> None:
        self._steps, self._samples, self._factor, self._rank = steps, samples, factor, rank
        self._left_out = left_out
        self.now = False

    def start(self, run: Any) -> None:
        train_step = run.engine.train_step

        def watched(batches: Any, progress: Any, signals: Any) -> Any:
            bad = progress.step + 1 in self._steps or progress.samples in self._samples
            self.now = bad and self._rank in (None, run.world.rank)
            return train_step(batches, progress, signals)

        run.engine.train_step = watched
        for parameter in run.engine.parameters.values():
            if parameter.requires_grad:
                parameter.register_hook(lambda g: g * self._factor if self.now else g)
        run.progress = run.progress.without(*self._left_out)

    def state(self) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        if name in ("step", "record", "went_back", "saving", "end", "close", "load_state"):
            return lambda *_: None
        raise AttributeError(name)
