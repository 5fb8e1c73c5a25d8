"""slurm/smoke.sbatch on the cluster that `sbatch` reaches, as small as it can be; two nodes, with or without GPUs."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 1200
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(LIMIT + 60),
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm"),
]


def test_two_nodes_train_save_and_resume(tmp_path: Path) -> None:
    log = tmp_path / "smoke.log"
    variables = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "RANKS_PER_NODE": "2", "STEPS": "3"}
    environment = {**os.environ, **variables, "FOLDER": str(tmp_path / "runs")}
    options = ["--parsable", "--gpus-per-node=0", f"--output={log}", "--time=30"]
    command = ["sbatch", *options, *os.environ.get("SBATCH_ARGS", "").split(), "slurm/smoke.sbatch"]
    submitted = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ended(submitted.stdout.strip()) == "COMPLETED", log.read_text()
    text = log.read_text()
    assert "smoke: all well on 2 nodes of 2 ranks" in text
    assert text.count("resumed after step 3") == 2


def ended(job: str) -> str:
    """The state in which a job has ended."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True)
        state = re.search(r"JobState=(\w+)", shown.stdout)
        assert state is not None
        if state[1] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state[1]
        time.sleep(2)
    subprocess.run(["scancel", job], check=False)
    return "too late"
