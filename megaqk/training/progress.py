"""Where a run is."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run has done.

    Attributes:
        step: Optimizer steps taken, skipped ones included.
        samples: Where it is in the stream of training samples.
        tokens: Tokens learned from, and those of skipped steps.
        skipped: Steps that changed nothing, since their loss or gradient was not finite.
        left_out: Parts [first, end) of the stream that are not trained on, in order.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    left_out: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        # A manifest gives lists.
        object.__setattr__(self, "left_out", tuple((first, end) for first, end in self.left_out))

    def next_batch(self, size: int) -> int:
        """The sample with which the next global batch of a size begins: none that is left out is in it."""
        begin = self.samples
        for first, end in self.left_out:
            if begin < end and first < begin + size:
                begin = end
        return begin

    def without(self, *parts: tuple[int, int]) -> "Progress":
        """The same progress with more left out."""
        return replace(self, left_out=tuple(sorted({*self.left_out, *parts})))
