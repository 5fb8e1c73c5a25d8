"""`megaqk preflight` on ranks of one machine; on two nodes of a cluster it is in tests/cluster."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.commands import run_command
from tests.harness import run_distributed

ALIKE = "--least=0.001"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_fit_machine_is_shown(
    ranks: int, tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["preflight", str(write_config(tmp_path)), ALIKE]
    assert run_distributed(run_command, ranks, command, init=False) == [0] * ranks
    shown = capfd.readouterr().out
    assert "products in GFLOP/s by rank" in shown
    assert ("reduction over all ranks" in shown) == (ranks == 2)
    # A run of this folder has not begun.
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--least=1.5", "--least = 1.5: must be above 0 and at most 1"),
        ("data.text=gone.jsonl", "data.text = gone.jsonl"),
        ("training.precision=fp16", "training.precision = fp16: needs a CUDA device"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    word: str, line: str, tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["preflight", str(write_config(tmp_path)), word]
    assert run_distributed(run_command, 2, command, init=False) == [2, 2]
    captured = capfd.readouterr()
    assert line in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err
