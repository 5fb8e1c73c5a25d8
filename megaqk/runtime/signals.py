"""SIGINT and SIGTERM, held back until the work can be left without damage."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM has ended the work of all ranks at the same place.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Pending(threading.local):
    """Which signal has asked this process to stop, and whether it may raise right now."""

    # Of each thread apart: Python handles signals in the main thread, and no other may let them raise there.

    number = 0
    may_raise = False

    def note(self, number: int, _frame: object) -> None:
        # The first signal counts; later ones must not break what it has set going.
        self.number = self.number or number
        if self.may_raise:
            self.may_raise = False
            raise Interrupted(self.number)


_pending = _Pending()


def interruptible(action: Callable[[], _T]) -> _T:
    """Run `action`, which a signal (see `stop_signals`) that came before or comes meanwhile ends with `Interrupted`."""
    before = _pending.may_raise
    try:
        _pending.may_raise = True
        if _pending.number:
            raise Interrupted(_pending.number)
        return action()
    finally:
        _pending.may_raise = before


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise out of `interruptible` and nowhere else."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        # A shell starts what runs in the background with SIGINT ignored.
        if handler is not signal.SIG_IGN:
            signal.signal(number, _pending.note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _pending.number = 0
