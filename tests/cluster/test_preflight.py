"""`megaqk preflight` in a job of two nodes, as slurm/pretrain.sbatch runs it: the odd one is named with its node."""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.cluster.jobs import ROOT, Job, Site, wait_for

NODES = ("--nodes=2", "--ntasks-per-node=2")
# Four ranks on the cores of one machine are less alike than nodes are.
ALIKE = {"PREFLIGHT": "1", "PREFLIGHT_LEAST": "0.35"}


def interpreter(folder: Path, command: str) -> str:
    """A Python that another command starts on the second node."""
    path = folder / "python"
    on_second = f'[ "${{SLURM_NODEID:-}}" = 1 ] && exec {command} {sys.executable} "$@"'
    path.write_text(f'#!/bin/bash\n{on_second}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_machines_that_are_fit_are_shown_and_the_run_starts(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, training={"steps": 3})
    job = site.submit(*NODES, "slurm/pretrain.sbatch", str(config), env={**ALIKE, "PREFLIGHT_LEAST": "0.01"})
    assert job.ended() == "COMPLETED", job.log
    assert "node1      2  cpu" in job.log
    assert "node1  node2" in job.log
    assert job.log.index("reduction over all ranks") < job.log.index("step 3/3")


def refused(job: Job) -> str:
    """The one line of a job that has not begun to train."""
    assert job.ended() == "FAILED", job.log
    assert job.status() == 2, job.log
    [error] = [said for said in job.log.splitlines() if "megaqk: error: " in said]
    assert "step 1/" not in job.log
    return error


def slow_down(job: Job, rank: int) -> None:
    """Have a rank that has joined the others run a thirtieth of the time, until it ends."""
    assert wait_for(lambda: bool(job.rank(rank, "preflight")))
    [process] = job.rank(rank, "preflight")
    with suppress(psutil.Error):
        while process.status() != psutil.STATUS_ZOMBIE:
            process.suspend()
            time.sleep(0.3)
            process.resume()
            time.sleep(0.01)


def test_a_slow_rank_is_named(site: Site, write_config: Callable[..., Path]) -> None:
    job = site.submit(*NODES, "slurm/pretrain.sbatch", str(write_config(site.folder)), env=ALIKE)
    slow_down(job, 3)
    assert "rank 3 on node2: multiplies at" in refused(job)


def test_other_code_on_a_node_is_named(site: Site, write_config: Callable[..., Path]) -> None:
    shutil.copytree(ROOT / "megaqk", site.folder / "other" / "megaqk")
    with (site.folder / "other" / "megaqk" / "errors.py").open("a") as errors:
        errors.write("# a line more\n")
    python = interpreter(site.folder, f"env PYTHONPATH={site.folder}/other")
    config = write_config(site.folder)
    job = site.submit(*NODES, "slurm/pretrain.sbatch", str(config), env={**ALIKE, "PYTHON": python})
    assert "rank 2, 3 on node2: code of megaqk = " in refused(job)


def test_data_that_a_node_does_not_see_is_named(
    site: Site, write_config: Callable[..., Path], data_section: dict[str, str]
) -> None:
    cache = data_section["cache_dir"]
    python = interpreter(site.folder, f"unshare --mount sh -c 'mount -t tmpfs none {cache}; exec \"$@\"' sh")
    config = write_config(site.folder)
    job = site.submit(*NODES, "slurm/pretrain.sbatch", str(config), env={**ALIKE, "PYTHON": python})
    error = refused(job)
    assert f"data.cache_dir = {cache}: has not the " in error
    assert "on node2)" in error
