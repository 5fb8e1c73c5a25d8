"""slurm/pretrain.sbatch: what is requeued and goes on to the same end, and what is not requeued."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.jobs import Job, Site, cluster, copy_scripts, wait_for
from tests.distributed.test_resume import assert_equal, checkpoint, records

NODES = ("--nodes=2", "--ntasks-per-node=2")
STEPS = 100
LONG = {
    "parallel": {"tensor": 2},
    "training": {"steps": STEPS},
    "checkpoint": {"every": 10},
    "evaluation": {"every": 0},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> Path:
    """The configuration of a run over two nodes that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    copy_scripts(folder)
    config = write_config(folder, **LONG)
    job = Site(folder).submit(*NODES, "slurm/pretrain.sbatch", str(config))
    assert job.ended() == "COMPLETED", job.log
    assert "tensor 2 x pipeline 1 x data 2" in job.log
    return config


def in_mid_run(site: Site, config: Path, *flags: str, step: int = 10, env: dict[str, str] | None = None) -> Job:
    """A job that has just taken some steps of many."""
    job = site.submit(*NODES, *flags, "slurm/pretrain.sbatch", str(config), env=env)
    assert job.printed(rf"step {step}/{STEPS} "), job.log
    return job


def assert_same_end(config: Path, undisturbed: Path) -> None:
    assert records(config) == records(undisturbed)
    ours = checkpoint(config, STEPS)
    assert len(ours) > 4
    assert_equal(ours, checkpoint(undisturbed, STEPS))


def result(config: Path) -> dict[str, str]:
    return dict(json.loads((config.parent / "run" / "result.json").read_text()))


def test_a_power_cut(site: Site, write_config: Callable[..., Path], undisturbed: Path) -> None:
    config = write_config(site.folder, **LONG)
    job = in_mid_run(site, config, step=15)
    cluster("crash", "node2")
    try:
        assert wait_for(lambda: job.state() == "PENDING", 60), job.log
        assert job.processes() == []
    finally:
        cluster("boot", "node2")
    assert job.ended() == "COMPLETED", job.log
    assert job.shown("Restarts") == "1"
    assert "resumed after step " in job.log
    assert_same_end(config, undisturbed)


def test_the_signal_before_the_time_limit(site: Site, write_config: Callable[..., Path], undisturbed: Path) -> None:
    config = write_config(site.folder, **{**LONG, "checkpoint": {"every": 1000}})
    job = in_mid_run(site, config)
    # What Slurm sends then, to whom it sends it.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job.number], check=True, timeout=30)
    assert job.ended() == "COMPLETED", job.log
    assert job.shown("Restarts") == "1"
    assert "stopped by SIGUSR1" in job.log
    assert "exit status 75, requeued to go on from step " in job.log
    assert_same_end(config, undisturbed)


def test_a_fault_that_comes_again_is_given_up(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, **{**LONG, "checkpoint": {"every": 1000}})
    job = in_mid_run(site, config, env={"STARTS": "2"})
    for start in (1, 2):
        assert wait_for(lambda start=start: job.log.count(f"step 10/{STEPS} ") == start), job.log  # type: ignore[misc]
        job.rank(3, "pretrain")[0].send_signal(signal.SIGKILL)
        assert wait_for(lambda start=start: job.log.count("exit status ") == start), job.log  # type: ignore[misc]
    assert job.ended() == "FAILED"
    assert job.shown("Restarts") == "1"
    assert job.log.count("rank 3 on node2 is gone") == 2
    assert "2 starts have brought no new checkpoint: not requeued" in job.log


def test_a_stop_file_is_not_requeued(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, **LONG)
    job = in_mid_run(site, config)
    (site.folder / "run" / "stop").touch()
    assert job.ended() == "FAILED"
    assert job.status() == 75
    assert result(config)["stopped_by"] == "stop file"
    assert job.shown("Restarts") == "0"


def test_a_run_that_diverges_is_not_requeued(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, optimizer={"lr": 1e30})
    job = site.submit(*NODES, "slurm/pretrain.sbatch", str(config))
    assert job.ended() == "FAILED"
    assert job.status() == 76, job.log
    assert job.shown("Restarts") == "0"


def test_scancel_leaves_nothing_behind(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(site.folder, **{**LONG, "checkpoint": {"every": 1000}})
    job = in_mid_run(site, config)
    assert len(job.processes()) > 4
    subprocess.run(["scancel", job.number], check=True, timeout=30)
    assert job.ended() == "CANCELLED", job.log
    assert wait_for(lambda: not job.processes(), 20), job.processes()
    assert job.shown("Restarts") == "0"
    # The ranks were asked to stop, and have saved.
    assert result(config)["stopped_by"] == "SIGTERM"
    assert list((site.folder / "run" / "checkpoints").glob("step-*[0-9]"))


def test_another_number_of_nodes(site: Site, write_config: Callable[..., Path], undisturbed: Path) -> None:
    """Submitted again on half the nodes a run goes on with the same batches."""
    config = write_config(site.folder, **LONG)
    first = in_mid_run(site, config, step=15)
    subprocess.run(["scancel", first.number], check=True, timeout=30)
    assert first.ended() == "CANCELLED", first.log
    second = site.submit("--nodes=1", "--ntasks-per-node=2", "slurm/pretrain.sbatch", str(config))
    assert second.ended() == "COMPLETED", second.log
    assert "tensor 2 x pipeline 1 x data 2" in first.log
    assert "tensor 2 x pipeline 1 x data 1" in second.log
    assert "resumed after step " in second.log
    ours, theirs = ([record["loss"] for record in records(one) if "loss" in record] for one in (config, undisturbed))
    assert ours == pytest.approx(theirs, rel=1e-5)
