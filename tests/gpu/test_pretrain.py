"""`megaqk pretrain` on the device, killed on the way and started again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import devices
from tests.distributed.test_resume import kill_from_outside

STEPS, KILLED_AT = 16, 10
LIMIT = 240


def losses(config: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {record["step"]: record["loss"] for record in records if "loss" in record}
    assert list(found) == list(range(1, STEPS + 1))
    return found


@pytest.mark.skipif(devices.NAME == "pretend", reason="a command line knows real devices only")
def test_a_killed_run_goes_on(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    sections = {
        "model": {"preset": "llama", "dropout": 0.1},
        "training": {"steps": STEPS, "precision": "bf16"},
        "checkpoint": {"every": 4},
    }
    whole, killed = (write_config(tmp_path / name, **sections) for name in ("whole", "killed"))
    command = [sys.executable, "-m", "megaqk", "pretrain"]
    first = subprocess.run([*command, str(whole)], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert f"device {devices.NAME}" in first.stdout + first.stderr
    kill_from_outside([*command[1:], str(killed)], tmp_path / "killed" / "run" / "metrics.jsonl", KILLED_AT)
    again = subprocess.run([*command, str(killed)], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "resumed after step 8" in again.stdout + again.stderr
    # Kernels of a GPU may add in another order the second time.
    assert losses(killed) == pytest.approx(losses(whole), rel=1e-3)
