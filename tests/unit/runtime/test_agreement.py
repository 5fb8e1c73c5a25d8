import signal
from pathlib import Path

import pytest

from megaqk.errors import UserError
from megaqk.runtime.agreement import Solo, _Outcome, agreed
from megaqk.runtime.signals import Interrupted


class Three(Solo):
    """This rank's value, and two others'."""

    rank, size = 1, 3

    def __init__(self, *others: object) -> None:
        self._others = others

    def allgather(self, value: object) -> list[object]:  # type: ignore[override]
        return [self._others[0], value, self._others[1]]


def fail() -> str:
    raise UserError("ours")


A, C, THEIRS, OURS = _Outcome("a"), _Outcome("c"), _Outcome[str](failure="theirs"), _Outcome[str](failure="ours")


def test_a_failure_anywhere_is_raised_everywhere() -> None:
    assert agreed(Three(A, C), lambda: "b") == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"^theirs \(rank 2\)$"):
        agreed(Three(A, THEIRS), lambda: "b")
    with pytest.raises(UserError, match=r"^ours \(rank 1\)$"):
        agreed(Three(A, THEIRS), fail)
    with pytest.raises(UserError, match=r"^ours \(rank 0\)$"):
        agreed(Three(OURS, C), fail)
    with pytest.raises(Interrupted):
        agreed(Three(A, _Outcome[str](signal=signal.SIGTERM)), lambda: "b")


def test_what_all_have_met_names_no_rank() -> None:
    with pytest.raises(UserError, match=r"^ours$"):
        agreed(Three(OURS, OURS), fail)
    with pytest.raises(UserError, match=r"^ours$"):
        agreed(Solo(), fail)


def test_what_the_operating_system_refuses_is_a_failure_of_all() -> None:
    with pytest.raises(UserError, match=r"absent: No such file or directory \(rank 1\)$"):
        agreed(Three(A, C), lambda: Path("absent").stat())
