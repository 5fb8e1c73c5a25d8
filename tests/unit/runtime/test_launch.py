import os

import pytest

from megaqk.errors import UserError
from megaqk.runtime.launch import Launch, read_launch, started_by_mpi

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_without_a_launcher_there_is_one_process() -> None:
    assert read_launch({}) == Launch(rank=0, world_size=1, local_rank=0, local_size=1)


def test_what_torchrun_says() -> None:
    assert read_launch(TORCHRUN) == Launch(rank=3, world_size=4, local_rank=1, local_size=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"WORLD_SIZE": None}, "WORLD_SIZE: must be set beside RANK"), ({"LOCAL_RANK": "x"}, "must be integers")],
)
def test_half_a_launch_is_refused(change: "dict[str, str | None]", said: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(UserError, match=said):
        read_launch(environment)


def test_a_process_alone_gets_a_rendezvous_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "")  # so that monkeypatch takes back what is set now
    monkeypatch.setenv("RANK", "")
    Launch().export()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert int(os.environ["MASTER_PORT"]) > 0
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


@pytest.mark.parametrize(("size", "several"), [("", False), ("1", False), ("4", True)])
def test_an_mpi_launcher_is_noticed(size: str, several: bool) -> None:
    assert started_by_mpi({"OMPI_COMM_WORLD_SIZE": size}) is several
