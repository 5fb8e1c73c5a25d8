import sys

import pytest

from megaqk.corpus.commands import find_comm
from megaqk.errors import UserError
from megaqk.runtime.agreement import Solo


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(find_comm(mpi=False), Solo)
    monkeypatch.setenv("PMI_SIZE", "1")
    assert isinstance(find_comm(mpi=False), Solo)


def test_a_launcher_without_mpi4py_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"MPI is not usable here: .*install megaqk\[mpi\]"):
        find_comm(mpi=False)
