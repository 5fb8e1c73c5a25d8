"""Which checkpoints are kept."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What `checkpoint.keep`, `keep_every` and `keep_best` say.

    Attributes:
        newest: So many of the newest.
        every: Those whose step is a multiple of it, for good; 0: none.
        best: So many of those with the lowest validation loss.
    """

    newest: int
    every: int = 0
    best: int = 0

    def reasons(self, losses: Mapping[int, float | None]) -> dict[int, str]:
        """Why each checkpoint is kept; empty for one that need not be.

        Args:
            losses: Validation loss by step; None where it has not been measured at that very step.
        """
        steps = sorted(losses)
        measured = sorted((loss, -step) for step, loss in losses.items() if loss is not None)
        reasons: dict[int, list[str]] = {step: [] for step in steps}
        for step in steps[-self.newest :]:
            reasons[step].append("newest")
        for step in steps:
            if self.every and step % self.every == 0:
                reasons[step].append(f"every {self.every}")
        for _, step in measured[: self.best]:
            reasons[-step].append("best")
        return {step: ", ".join(why) for step, why in reasons.items()}
