"""slurm/study.sbatch: the runs of a study as tasks of an array, which go on where they were stopped."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from megaqk.config.yaml_text import format_yaml, parse_yaml
from tests.cluster.jobs import Job, Site, wait_for

STEPS = 60


def write_study(site: Site, write_config: Callable[..., Path]) -> None:
    config = write_config(
        site.folder, training={"steps": STEPS}, checkpoint={"every": 1000}, evaluation={"every": 0, "batches": 1}
    )
    base = parse_yaml(config.read_text())
    assert isinstance(base, dict)
    del base["run"]
    study = {
        "name": "pair",
        "base": base,
        "seeds": [1],
        "arms": {"plain": {"qk_timing": {"enabled": False}}, "timed": {}},
        "analysis": False,
        "sizes": {"small": {"processes": 2}},
    }
    (site.folder / "pair.yaml").write_text(format_yaml(study))


def recorded(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    records = map(json.loads, metrics.read_text().splitlines() if metrics.exists() else [])
    return [record["step"] for record in records if "loss" in record]


def test_each_run_is_a_task_that_goes_on_after_the_time_limit(site: Site, write_config: Callable[..., Path]) -> None:
    write_study(site, write_config)
    flags = ["--parsable", f"--output={site.folder}/%a.log", "--time=20", "--cpus-per-task=2"]
    number = site.run("slurm/study.sbatch", *flags, "pair.yaml", "small", "logging.every=1").strip()
    tasks = [Job(f"{number}_{task}", site.folder / f"{task}.log") for task in (0, 1)]
    folders = [site.folder / "runs" / "studies" / "pair-small" / arm / "seed-1" for arm in ("plain", "timed")]
    assert tasks[0].shown("ArrayTaskThrottle") == "4"
    assert wait_for(lambda: recorded(folders[1])[-1:] >= [10]), tasks[1].log
    subprocess.run(["scancel", "--batch", "--signal=USR1", tasks[1].number], check=True, timeout=30)
    assert [task.ended() for task in tasks] == ["COMPLETED"] * 2, [task.log for task in tasks]
    assert "exit status 75, requeued to go on from step " in tasks[1].log
    assert [task.shown("Restarts") for task in tasks] == ["0", "1"]
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        assert (result["state"], result["topology"]["data"]) == ("finished", 2)
        assert recorded(folder) == list(range(1, STEPS + 1))
    assert "resumed after step " in (folders[1] / "output.log").read_text()
    kept = parse_yaml((folders[0].parents[1] / "study.yaml").read_text())
    assert isinstance(kept, dict)
    assert kept["command"] == "megaqk study run pair.yaml --size small logging.every=1"
    # Submitted again it has nothing to do.
    again = site.submit("--array=0", "slurm/study.sbatch", "pair.yaml", "small", "logging.every=1")
    assert again.ended() == "COMPLETED", again.log
    assert "1 runs, 1 of them done" in again.log


def test_what_is_wrong_is_said_in_one_line(site: Site, write_config: Callable[..., Path]) -> None:
    write_study(site, write_config)
    for line, array in (
        ("--array: must be given, such as 0-19%4 for 20 runs", []),
        ("--array = 2: must be within 0-1, the runs of pair.yaml", ["--array=2"]),
    ):
        job = site.submit(*array, "slurm/study.sbatch", "pair.yaml", "small")
        assert job.ended() == "FAILED"
        assert job.status() == 2, job.log
        assert line in job.log
        assert job.shown("Restarts") == "0"
