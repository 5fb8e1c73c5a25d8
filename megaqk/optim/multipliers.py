"""What scales the learning rate of a parameter group, beside the schedule that all groups share."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol


class Moment(NamedTuple):
    """What a multiplier may look at.

    Attributes:
        step: Steps already taken, that is the 0-based number of the step about to be taken.
        tokens: Tokens already learned from; None where every step had as many as the next. A run whose batch size
            changed on the way has other counts.
        signals: Measured values by name, the same on every rank.
    """

    step: int
    tokens: int | None = None
    signals: Mapping[str, float] = MappingProxyType({})


class Multiplier(Protocol):
    """A factor on the learning rate of a group; what derives from it has no state unless it says so.

    Its `repr` must tell its settings, as that of a dataclass does: ranks compare their groups by it.
    """

    def at(self, moment: Moment) -> float:
        """The factor of the step about to be taken; asked once before each step, on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON can hold it; empty where the factor follows from the moment alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        del state


@dataclass(frozen=True)
class Constant(Multiplier):
    """The same factor at every step."""

    value: float = 1.0

    def at(self, moment: Moment) -> float:
        """The value."""
        del moment
        return self.value
