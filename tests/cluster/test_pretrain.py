"""slurm/pretrain.sbatch: jobs of two nodes over a network, which end as they should."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.jobs import Job, Site

NODES = ("--nodes=2", "--ntasks-per-node=2")


def last_step(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["step"] for line in lines)


def losses(run: Path) -> "list[float]":
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def losses_of_one_machine(folder: Path, write_config: Callable[..., Path]) -> "list[float]":
    """The same run under another launcher, which tests/distributed/test_launchers.py holds against the rest."""
    config = write_config(folder, parallel={"pipeline": 2})
    command = [sys.executable, "-m", "megaqk", "pretrain", str(config), "--processes", "4"]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=variables, check=True, timeout=150, capture_output=True)
    return losses(folder / "run")


def test_a_pipeline_over_two_nodes_with_one_task_a_gpu(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, parallel={"pipeline": 2})
    (site.folder / "slurm" / "site.env").write_text(
        f"SBATCH_FLAGS=(--nodes=2 --gpus-per-node=1 --cpus-per-gpu=2 --output={site.folder}/site-%j.log --time=20)\n"
        "export NCCL_IB_TIMEOUT=22\n"
    )
    # The site's flags, and one of the command's after them.
    number = site.run("slurm/pretrain.sbatch", "--gpus-per-node=2", "--parsable", str(config)).strip()
    job = Job(number, site.folder / f"site-{number}.log")
    assert job.ended() == "COMPLETED", job.log
    assert "tensor 1 x pipeline 2 x data 2" in job.log
    run = site.folder / "run"
    assert last_step(run) == 10
    assert json.loads((run / "result.json").read_text())["state"] == "finished"
    assert losses(run) == losses_of_one_machine(site.folder / "alone", write_config)
    kept = (run / "slurm" / f"{number}.environment").read_text()
    assert "SLURM_JOB_NODELIST=node[1-2]" in kept
    assert "NCCL_IB_TIMEOUT=22" in kept
    assert "GLOO_SOCKET_IFNAME=eth0" in kept
    assert job.shown("Restarts") == "0"


def test_too_few_cpus_for_the_gpus_are_refused(site: Site, write_config: Callable[..., Path]) -> None:
    job = site.submit("--nodes=1", "--gpus-per-node=2", "slurm/pretrain.sbatch", str(write_config(site.folder)))
    assert job.ended() == "FAILED"
    assert job.status() == 2
    assert "1 CPUs a node for 2 GPUs: must be at least one each: add --cpus-per-gpu=N" in job.log


def test_a_mistake_is_one_line_and_not_requeued(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder)
    jobs = {
        "parallel.tensor = 3": site.submit(*NODES, "slurm/pretrain.sbatch", str(config), "parallel.tensor=3"),
        # Refused by every rank alike, before they have met.
        "training.global_batch_size = 6": site.submit(
            *NODES, "slurm/pretrain.sbatch", str(config), "training.global_batch_size=6"
        ),
        "data.text = gone.jsonl": site.submit(*NODES, "slurm/pretrain.sbatch", str(config), "data.text=gone.jsonl"),
    }
    for line, job in jobs.items():
        assert job.ended() == "FAILED"
        assert job.status() == 2, job.log
        assert job.log.count("megaqk: error: ") == 1
        assert line in job.log
        assert job.shown("Restarts") == "0"
