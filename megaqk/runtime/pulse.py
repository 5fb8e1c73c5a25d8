"""Whether a process gets on with its work, as another thread of it can see."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Sign:
    """What a rank answers when it is asked how it is.

    Attributes:
        age: Seconds since it last got on.
        busy: Whether it is at something that may take as long as it likes.
        place: Where its main thread is, in our own code.
    """

    age: float
    busy: bool
    place: str


class Pulse:
    """Beats with every step. Before the first and where it is `busy` a process may take as long as it likes.

    Attributes:
        is_busy: Whether it may now.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.is_busy = True

    def beat(self) -> None:
        """Say that the process has got on."""
        self._last = time.monotonic()

    def beats(self, items: Iterable[_T]) -> Iterator[_T]:
        """The same items, with a beat at each."""
        for item in items:
            self.beat()
            yield item

    @contextmanager
    def steps(self) -> Iterator[None]:
        """A block of steps, of which none may take longer than the watchdog waits."""
        self.beat()
        self.is_busy = False
        try:
            yield
        finally:
            self.is_busy = True

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A block between two steps that may take as long as it likes, such as a save."""
        self.is_busy = True
        try:
            yield
        finally:
            self.beat()
            self.is_busy = False

    def age(self) -> float:
        """Seconds since it last got on."""
        return time.monotonic() - self._last

    def sign(self) -> Sign:
        """How this process is."""
        return Sign(round(self.age(), 1), self.is_busy, _place())


def _place() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if ROOT in path.parents:
            return f"{frame.f_code.co_name} ({path.relative_to(ROOT)}:{frame.f_lineno})"
        frame = frame.f_back
    return "no code of megaqk"
