from pathlib import Path

import pytest
import torch

from megaqk.config.loading import build_config
from megaqk.preflight import machines
from megaqk.preflight.machines import Machine, code_digest, differences, places, this_machine


def machine(host: str, device: str = "cpu", **versions: str) -> Machine:
    return Machine(host, device, {"torch": "2.13.0", "python": "3.11.2", **versions})


def test_machines_that_agree_have_no_differences() -> None:
    assert differences([machine("node1"), machine("node1"), machine("node2")]) == []


def test_a_difference_names_the_fewer_ranks_and_their_nodes() -> None:
    odd = [machine("a"), machine("b", torch="2.12.0"), machine("b", torch="2.12.0"), *[machine("c")] * 3]
    assert differences(odd) == [
        "rank 1, 2 on b: torch = 2.12.0: must be the same everywhere, and most ranks have 2.13.0"
    ]


def test_every_difference_has_a_line() -> None:
    odd = [machine("a"), machine("b", device="H200"), machine("c", torch="2.12.0"), machine("d", python="3.12.1")]
    assert [line.split(" = ")[0] for line in differences(odd)] == [
        "rank 1 on b: device",
        "rank 2 on c: torch",
        "rank 3 on d: python",
    ]


def test_ranks_are_named_by_node() -> None:
    assert places([0, 2, 3], [machine("a"), machine("a"), machine("b"), machine("b")]) == "rank 0 on a; rank 2, 3 on b"


def test_two_configurations_are_two_versions() -> None:
    ours, others = (
        this_machine(build_config({"training": {"steps": steps}}), torch.device("cpu")) for steps in (1000, 2000)
    )
    assert [line.split(" = ")[0].split(": ")[1] for line in differences([ours, others])] == ["configuration"]


def test_the_code_of_a_changed_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "PACKAGE", tmp_path)
    digests = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        (tmp_path / name).write_text(text)
        digests.add(code_digest())
    assert len(digests) == 3
