"""Where a run is."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run has done.

    Attributes:
        step: Optimizer steps taken.
        samples: Samples of the training data consumed.
        tokens: Tokens learned from.
        skipped: Steps that changed nothing, since their loss or gradient was not finite.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
