import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaqk.errors import UserError
from megaqk.runtime.agreement import (
    Comm,
    Interrupted,
    Solo,
    _Outcome,
    agreed,
    all_done,
    all_done_exchanging,
    find_comm,
    stop_signals,
)


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(find_comm(mpi=False), Solo)
    monkeypatch.setenv("PMI_SIZE", "1")
    assert isinstance(find_comm(mpi=False), Solo)


def test_a_launcher_without_mpi4py_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"MPI is not usable here: .*install megaqk\[mpi\]"):
        find_comm(mpi=False)


class Three(Solo):
    """This rank's value, and two others'."""

    rank, size = 1, 3

    def __init__(self, *others: object) -> None:
        self._others = others

    def allgather(self, value: object) -> list[object]:  # type: ignore[override]
        return [self._others[0], value, self._others[1]]


def fail() -> str:
    raise UserError("ours")


def test_a_failure_anywhere_is_raised_everywhere() -> None:
    a, c, theirs = _Outcome("a"), _Outcome("c"), _Outcome[str](failure="theirs")
    assert agreed(Three(a, c), lambda: "b") == ["a", "b", "c"]
    assert all_done(Three(a, c), lambda: "b") == "b"
    with pytest.raises(UserError, match="theirs"):
        agreed(Three(a, theirs), lambda: "b")
    with pytest.raises(UserError, match="ours"):
        agreed(Three(a, c), fail)
    with pytest.raises(Interrupted):
        agreed(Three(a, _Outcome[str](signal=signal.SIGTERM)), lambda: "b")


def test_what_the_operating_system_refuses_is_a_failure_of_all() -> None:
    with pytest.raises(UserError, match="absent: No such file"):
        agreed(Three(_Outcome("a"), _Outcome("c")), lambda: Path("absent").stat())


class Counting(Three):
    """Counts the exchanges, of which every rank must make the same number."""

    exchanges = 0

    def allgather(self, value: object) -> list[object]:  # type: ignore[override]
        self.exchanges += 1
        return super().allgather(value)


@pytest.mark.parametrize("theirs", [_Outcome("a"), _Outcome[str](failure="theirs")], ids=["well", "failed"])
@pytest.mark.parametrize("when", ["before", "never"])
def test_an_action_that_exchanges_takes_part_whatever_happens(theirs: _Outcome[str], when: str) -> None:
    ranks = Counting(theirs, _Outcome("c"))

    def action(comm: Comm) -> list[str]:
        return comm.allgather(fail() if when == "before" else "b")

    if when == "never" and theirs.failure is None:
        assert all_done_exchanging(ranks, action) == ["a", "b", "c"]
    else:
        with pytest.raises(UserError, match="theirs" if theirs.failure else "ours"):
            all_done_exchanging(ranks, action)
    assert ranks.exchanges == 1


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
def test_an_exchange_is_not_torn_by_a_signal() -> None:
    ranks = Counting(_Outcome("a"), _Outcome("c"))

    def action(comm: Comm) -> list[str]:
        gathered = comm.allgather("b")
        os.kill(os.getpid(), signal.SIGTERM)
        return gathered

    assert all_done_exchanging(ranks, action) == ["a", "b", "c"]
    with pytest.raises(Interrupted):
        all_done_exchanging(ranks, action)
    assert ranks.exchanges == 2
