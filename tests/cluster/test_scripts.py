"""What is beside slurm/pretrain.sbatch, and how all scripts are written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.jobs import ROOT, Job, Site

SCRIPTS = sorted([*ROOT.glob("slurm/*.sbatch"), *ROOT.glob("slurm/*.sh"), *ROOT.glob("tools/*/*.sh")])
# The environment's own, which the test dependencies install, before any other.
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def test_shellcheck_finds_nothing() -> None:
    assert len(SCRIPTS) > 6
    files = [*SCRIPTS, ROOT / "slurm" / "site.env.example"]
    ran = subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_sweep_trains_each_line_some_at_a_time(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, training={"steps": 3}, schedule={"warmup_steps": 1})
    (site.folder / "grid.txt").write_text("training.seed=1 optimizer.lr=1e-3\n\ntraining.seed=2\ntraining.seed=3\n")
    flags = ["--parsable", f"--output={site.folder}/%a.log", "--time=20"]
    number = site.run("slurm/sweep.sbatch", *flags, str(config), "logging.every=3", "grid.txt", env={"AT_ONCE": "2"})
    tasks = [Job(f"{number.strip()}_{task}", site.folder / f"{task}.log") for task in (1, 2, 3)]
    assert tasks[0].shown("ArrayTaskThrottle") == "2"
    assert [task.ended() for task in tasks] == ["COMPLETED"] * 3, [task.log for task in tasks]
    runs = site.folder / "runs" / "grid"
    assert [json.loads((runs / str(task) / "result.json").read_text())["state"] for task in (1, 2, 3)] == [
        "finished"
    ] * 3
    assert [f"seed: {seed}" in (runs / str(seed) / "config.yaml").read_text() for seed in (1, 2, 3)] == [True] * 3
    assert "lr: 0.001" in (runs / "1" / "config.yaml").read_text()


def test_a_sweep_says_which_tasks_there_are(site: Site, write_config: Callable[..., Path]) -> None:
    (site.folder / "grid.txt").write_text("training.seed=1\n")
    job = site.submit("--array=2", "slurm/sweep.sbatch", str(write_config(site.folder)), "grid.txt")
    assert job.ended() == "FAILED"
    assert job.status() == 2
    assert "--array = 2: must be within 1-1, the lines of grid.txt" in job.log


def test_a_chain_prepares_and_then_trains(
    site: Site, write_config: Callable[..., Path], data_section: dict[str, str]
) -> None:
    [tokenizer] = Path(data_section["cache_dir"]).glob("*/tokenizer.model")
    config = write_config(site.folder, training={"steps": 3}, schedule={"warmup_steps": 1})
    # A Python that says where it runs, and the mpirun beside it.
    python = site.folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$OMPI_COMM_WORLD_RANK on $(uname -n)"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (python.parent / "mpirun").symlink_to(str(MPIRUN))
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PYTHON": str(python)}
    nodes = ("--nodes=2", "--ntasks-per-node=2")
    arguments = (data_section["text"], "--tokenizer", str(tokenizer), "--output", "mine/corpus")
    first = site.submit(*nodes, "slurm/prepare.sbatch", *arguments, env=as_root)
    afterwards = ("--kill-on-invalid-dep=yes", f"--dependency=afterok:{first.number}")
    prepared = ("data.text=null", "data.corpus=mine/corpus", f"data.tokenizer={tokenizer}")
    second = site.submit("--ntasks=2", *afterwards, "slurm/pretrain.sbatch", str(config), *prepared)
    assert second.ended() == "COMPLETED", first.log + second.log
    assert first.state() == "COMPLETED"
    ranks = {line for line in first.log.splitlines() if " on node" in line}
    assert ranks == {"0 on node1", "1 on node1", "2 on node2", "3 on node2"}
    for part in (".bin", ".idx"):
        [made] = Path(data_section["cache_dir"]).glob(f"*/corpus{part}")
        assert (site.folder / f"mine/corpus{part}").read_bytes() == made.read_bytes()
