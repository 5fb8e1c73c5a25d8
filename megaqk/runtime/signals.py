"""Requests to stop, which are met where the work can be left without damage: SIGINT, SIGTERM, SIGUSR1 and others."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NoReturn, TypeVar

_T = TypeVar("_T")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_FILE, TIME_LIMIT = 1001, 1002
"""Requests that are no signals, numbered like them."""
SAME_SECONDS = 1.0
"""Terminals and launchers send a signal twice: within this time a second one is the same request."""


def name_of(number: int) -> str:
    """What a request is called."""
    return {STOP_FILE: "stop file", TIME_LIMIT: "time limit"}.get(number) or signal.Signals(number).name


class Interrupted(KeyboardInterrupt):
    """A request has ended the work of all ranks at the same place.

    Attributes:
        number: The request.
    """

    def __init__(self, number: int) -> None:
        super().__init__(name_of(number))
        self.number = number


class _Requests:
    """What has asked this process to stop, and whether it may raise right now."""

    def __init__(self) -> None:
        self.number = 0
        self.may_raise = False
        self.held = False
        self.at_once: Callable[[int], NoReturn] | None = None
        self.own = 0
        self._since: float | None = None

    def note(self, number: int) -> None:
        """Count a signal, in the thread that listens: a second one ends the process."""
        if self.own:  # it is but to wake the main thread
            self.own -= 1
            return
        self.number = self.number or number
        if self.at_once is not None:
            self.at_once(number)
        if self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > SAME_SECONDS:
            os._exit(128 + number)

    def handle(self, number: int, _frame: object) -> None:
        """Python's handler, in the main thread, when it comes to run Python."""
        self.number = self.number or number
        if self.may_raise:
            self.may_raise = False
            raise Interrupted(self.number)


_requests = _Requests()


def interruptible(action: Callable[[], _T]) -> _T:
    """Run `action`, which a signal (see `stop_signals`) that came before or comes meanwhile ends with `Interrupted`."""
    # Python handles signals in the main thread: no other may let them raise there.
    if _requests.held or threading.current_thread() is not threading.main_thread():
        return action()
    before = _requests.may_raise
    try:
        _requests.may_raise = True
        if _requests.number:
            raise Interrupted(_requests.number)
        return action()
    finally:
        _requests.may_raise = before


def in_background(action: Callable[[], _T]) -> _T:
    """Run what is long and not Python in a thread, so that a signal may raise meanwhile; it is left to itself then."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def requested() -> int:
    """What has asked this process to stop; 0 if nothing has."""
    return _requests.number


def request(number: int) -> None:
    """Ask this process to stop from a thread, unless something has; it is no second signal."""
    if not _requests.number:
        _requests.number = number
        if signal.getsignal(signal.SIGUSR1) == _requests.handle:
            _requests.own += 1
            os.kill(os.getpid(), signal.SIGUSR1)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let no signal raise: who works in here asks `requested`, where it can stop."""
    _requests.held = True
    try:
        yield
    finally:
        _requests.held = False


@contextlib.contextmanager
def ending_at_once(end: Callable[[int], NoReturn]) -> Iterator[None]:
    """Where nothing can raise, as in the meeting of the processes, have a signal call `end` in another thread."""
    _requests.at_once = end
    try:
        if _requests.number:
            end(_requests.number)
        yield
    finally:
        _requests.at_once = None


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Let a signal raise out of `interruptible` and nowhere else, and a second one end the process at once."""
    global _requests
    _requests = _Requests()
    # Whatever the main thread does, a thread learns of a signal from this pipe: it may hang in a collective.
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=_listen, args=(read, _requests), name="signals", daemon=True).start()
    descriptor = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        # A shell starts what runs in the background with SIGINT ignored.
        if handler is not signal.SIG_IGN:
            signal.signal(number, _requests.handle)
    # Who started this process may have blocked them until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(descriptor)
        os.close(write)
        _requests = _Requests()


def ignore_stop_signals() -> None:
    """Be deaf, to the end of the process, to what a launcher sends to all when the first rank of a job has ended."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _listen(descriptor: int, requests: _Requests) -> None:
    with open(descriptor, "rb", buffering=0) as pipe:
        while numbers := pipe.read(64):
            for number in numbers:
                if number in STOPPING:
                    requests.note(number)


def _forget() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


# A signal to a forked child is no request to this process, whose pipe it shares.
os.register_at_fork(after_in_child=_forget)
