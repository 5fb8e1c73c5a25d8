import pytest

from megaqk.data.comm import Solo, agreed, find_comm
from megaqk.errors import UserError


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


def test_a_failure_anywhere_is_raised_everywhere() -> None:
    assert agreed(Three((None, "a"), (None, "c")), lambda: "b") == ["a", "b", "c"]
    with pytest.raises(UserError, match="theirs"):
        agreed(Three((None, "a"), ("theirs", None)), lambda: "b")

    def fail() -> str:
        raise UserError("ours")

    with pytest.raises(UserError, match="ours"):
        agreed(Three((None, "a"), (None, "c")), fail)
