"""What is wrong with the numbers of a run, and what it leaves behind."""

from dataclasses import dataclass

from megaqk.errors import DivergedError


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a run goes back from.

    Attributes:
        what: What it is, in words.
        at: The step after which it was seen.
        before: A step; checkpoints from it on vouch for nothing.
        samples: The part [first, end) of the stream that is left out from now on.
    """

    what: str
    at: int
    before: int
    samples: tuple[int, int]

    def told(self, step: int) -> str:
        """The line that says it, with the step that the run goes on from."""
        first, end = self.samples
        return f"{self.what}: back from step {self.at} to step {step}, samples {first} to {end - 1} are left out"


def diverged(what: str) -> DivergedError:
    """The end of a run that is lost, of which all ranks know."""
    return DivergedError(
        f"{what}: training diverged; the checkpoints before it are as they were. "
        "Lower optimizer.lr, lengthen schedule.warmup_steps or clip more with optimizer.grad_clip"
    )
