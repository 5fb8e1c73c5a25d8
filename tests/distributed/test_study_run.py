"""Studies run by the real command, each run a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.config.yaml_text import format_yaml, parse_yaml
from megaqk.errors import AGAIN, REFUSED
from megaqk.studies.plan import load_study
from megaqk.studies.runner import Runner

SECONDS = 120.0


@pytest.fixture
def write_study(tmp_path: Path, write_config: Callable[..., Path]) -> Callable[..., Path]:
    def write(
        arms: dict[str, Any] | None = None, processes: int = 1, analysis: bool = False, **sections: dict[str, Any]
    ) -> Path:
        base = parse_yaml(write_config(tmp_path / "base", **{"training": {"steps": 4}, **sections}).read_text())
        path = tmp_path / "study.yaml"
        study = {
            "name": "pair",
            "base": base,
            "seeds": [1],
            "analysis": analysis,
            "arms": arms or {"plain": {"qk_timing": {"enabled": False}}, "timed": {}},
            "sizes": {"cpu": {"processes": processes}},
        }
        path.write_text(format_yaml(study))
        return path

    return write


def command(study: Path, action: str, *words: str) -> list[str]:
    output = ["--output", str(study.parent / "out")]
    return [sys.executable, "-m", "megaqk", "study", action, str(study), "--size", "cpu", *output, *words]


def run(study: Path, action: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(study, action, *words), capture_output=True, text=True, timeout=SECONDS)


def result(study: Path, arm: str) -> dict[str, Any]:
    return dict(json.loads((study.parent / "out" / arm / "seed-1" / "result.json").read_text()))


def test_all_arms_end_and_what_is_done_is_passed_over(write_study: Callable[..., Path]) -> None:
    study = write_study(analysis=True, probes={"every": 2}, checkpoint={"every": 2, "keep_every": 2})
    first = run(study, "run", "--index", "1")
    assert (first.returncode, first.stderr) == (0, "")
    before = result(study, "timed")
    both = run(study, "run", "--jobs", "2")
    assert both.returncode == 0
    assert "2 runs, 1 of them done" in both.stdout
    assert f"plain/seed-1: validation loss {result(study, 'plain')['valid_loss']:.4f}" in both.stdout
    assert result(study, "timed") == before
    assert result(study, "plain")["state"] == "finished"
    assert [line.split()[1:4] for line in run(study, "list").stdout.splitlines()[1:]] == [
        ["plain/seed-1", "finished", "4"],
        ["timed/seed-1", "finished", "4"],
    ]
    # The same text and weights, and a multiplier that has made a difference.
    assert result(study, "plain")["loss"] != before["loss"]
    analysis = json.loads((study.parent / "out/plain/seed-1/analysis.json").read_text())
    assert analysis["steps"] == [0, 2, 4]
    # One that a user has made without the initial weights is made again.
    probe = [sys.executable, "-m", "megaqk", "probe", str(study.parent / "out/plain/seed-1"), "--heads", "none"]
    assert subprocess.run(probe, timeout=SECONDS).returncode == 0
    assert "2 runs, 1 of them done" in run(study, "run").stdout
    assert json.loads((study.parent / "out/plain/seed-1/analysis.json").read_text()) == analysis
    report = [sys.executable, "-m", "megaqk", "study", "report", str(study.parent / "out")]
    assert subprocess.run(report, timeout=SECONDS).returncode == 0
    assert "2 of 2 runs are finished" in (study.parent / "out/report/report.md").read_text()


def test_a_run_that_fails_leaves_the_others_alone(write_study: Callable[..., Path]) -> None:
    arms: dict[str, Any] = {"lost": {"data": {"text": "nowhere.jsonl"}}, "plain": {}}
    study = write_study(arms)
    ended = run(study, "run", "--jobs", "1")
    assert ended.returncode == REFUSED  # as that of all that have failed
    assert "lost/seed-1: failed: " in ended.stdout
    assert "nowhere.jsonl" in ended.stdout
    assert ended.stderr == "megaqk: error: 1 of 2 runs failed; the same command tries them again\n"
    assert result(study, "plain")["state"] == "finished"


def test_it_stops_when_asked_and_goes_on_by_the_same_command(write_study: Callable[..., Path]) -> None:
    study = write_study(training={"steps": 40})
    with subprocess.Popen(command(study, "run", "--jobs", "2"), stderr=subprocess.PIPE, text=True) as process:
        records = [study.parent / "out" / arm / "seed-1" / "metrics.jsonl" for arm in ("plain", "timed")]
        deadline = time.monotonic() + SECONDS
        while not all(path.exists() and path.read_bytes().count(b"\n") > 3 for path in records):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == AGAIN
    assert said.endswith("of 2 runs to go; the same command goes on\n")
    stopped = [result(study, arm) for arm in ("plain", "timed")]
    assert [one["state"] for one in stopped] == ["stopped", "stopped"]
    assert run(study, "run").returncode == 0
    lines = [json.loads(line) for line in records[0].read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))


def test_another_configuration_in_the_same_folder_is_refused(write_study: Callable[..., Path]) -> None:
    study = write_study()
    assert run(study, "run", "--arm", "plain").returncode == 0
    before = (study.parent / "out" / "study.yaml").read_text()
    refused = run(study, "run", "optimizer.lr=1e-4")
    assert refused.returncode == REFUSED
    assert (study.parent / "out" / "study.yaml").read_text() == before
    assert "holds another run: optimizer.lr = 0.0001, was 0.003" in refused.stderr
    assert not (study.parent / "out" / "timed").exists()
    assert run(study, "run", "--arm", "plane").stderr.startswith("megaqk: error: --arm = plane: must be one of plain")


def test_jobs_share_the_gpus_and_a_run_has_its_processes(
    tmp_path: Path, write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write_study(processes=2, parallel={"tensor": 2}), "cpu", tmp_path / "out")
    # Every process of ours writes what it may see.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "if 'RANK' in os.environ:\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'seen-' + os.environ['CUDA_VISIBLE_DEVICES'].replace(',', '+')).touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}")
    assert Runner(study, 2, ["4", "5", "6", "7"]).run(study.runs, "megaqk study run") == 0
    assert sorted(path.name for path in tmp_path.glob("seen-*")) == ["seen-4+5", "seen-6+7"]
    assert all(result(tmp_path / "study.yaml", arm)["topology"]["tensor"] == 2 for arm in study.spec.arms)
