import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from megaqk.runtime import signals as signals_module
from megaqk.runtime.agreement import Solo, agreed
from megaqk.runtime.signals import TIME_LIMIT, Interrupted, in_background, request, stop_signals


@pytest.fixture
def signals() -> Iterator[None]:
    with stop_signals():
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_action_at_once(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = time.monotonic()
    with stop_signals(), pytest.raises(Interrupted) as caught:
        agreed(Solo(), lambda: (os.kill(os.getpid(), number), time.sleep(30)))
    assert caught.value.number == number
    assert time.monotonic() - begun < 10
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("signals")
def test_a_signal_outside_of_an_action_waits_for_the_next() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    # What saves the work is not interrupted; a second signal changes nothing.
    assert agreed(Solo(), lambda: "saved", interruptible=False) == ["saved"]
    with pytest.raises(Interrupted):
        agreed(Solo(), lambda: "more")
    os.kill(os.getpid(), signal.SIGTERM)
    assert agreed(Solo(), lambda: "saved", interruptible=False) == ["saved"]


@pytest.mark.usefixtures("signals")
def test_a_signal_need_not_wait_for_other_languages() -> None:
    begun = time.monotonic()
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted):
        agreed(Solo(), lambda: in_background(lambda: ctypes.CDLL(None).usleep(20_000_000)))
    assert time.monotonic() - begun < 10


TWICE = """
import os, signal, threading, time, ctypes
from megaqk.runtime.signals import held, stop_signals
with stop_signals(), held():
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    threading.Timer(2.4, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    time.sleep(1.2)
    print("the same request", flush=True)
    for _ in range(50):
        ctypes.CDLL(None).usleep(500_000)
"""


ONCE = """
import os, signal, threading
from megaqk.runtime.signals import held, requested, stop_signals
with stop_signals(), held():
    os.kill(os.getpid(), signal.SIGUSR1)
    # No other thread runs meanwhile, for longer than two signals may be apart.
    sum(range(150_000_000))
    print(requested(), flush=True)
"""


def test_one_signal_is_one_however_late_it_is_heard() -> None:
    result = subprocess.run([sys.executable, "-c", ONCE], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, f"{int(signal.SIGUSR1)}\n"), result.stderr


@pytest.mark.usefixtures("signals")
def test_a_request_of_another_thread_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_module, "SAME_SECONDS", 0.1)
    threading.Timer(0.2, lambda: request(TIME_LIMIT)).start()
    with pytest.raises(Interrupted, match="time limit"):
        agreed(Solo(), lambda: time.sleep(20))
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)  # the first that somebody sends
    time.sleep(0.3)


def test_a_second_signal_ends_whatever_the_main_thread_does() -> None:
    result = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert result.stdout == "the same request\n"


@pytest.mark.usefixtures("signals")
def test_what_other_threads_do_lets_no_signal_in() -> None:
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: agreed(Solo(), lambda: (inside.set(), leave.wait(60))))
    thread.start()
    inside.wait(60)
    os.kill(os.getpid(), signal.SIGTERM)
    leave.set()
    thread.join()
    with pytest.raises(Interrupted):
        agreed(Solo(), lambda: agreed(Solo(), lambda: "inner"))
