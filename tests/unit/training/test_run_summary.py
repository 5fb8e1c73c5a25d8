import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from megaqk.training.metrics import MetricsWriter
from megaqk.training.run_folder import RunFolder
from megaqk.training.run_summary import find_runs, summarise

RESULT = {"state": "running", "step": 3, "steps": 100, "loss": 3.0, "valid_loss": 2.5, "tokens": 96, "last_words": ""}


def write_run(run_dir: Path, *, result: dict[str, Any] | None = None, steps: int = 5) -> None:
    folder = RunFolder(run_dir)
    folder.claim()
    folder.write_result({**RESULT, **(result or {})})
    with closing(MetricsWriter(run_dir)) as writer:
        for step in range(1, steps + 1):
            writer.write({"step": step, "tokens": 32 * step, "loss": 4.0 - step / 10, "tokens_per_second": 16.0})
    folder.release()


@contextmanager
def claimed(run_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the folder of a run, as rank 0 of a job does."""
    code = f"""
import sys, time
from pathlib import Path
from megaqk.training.run_folder import RunFolder
folder = RunFolder(Path({str(run_dir)!r}))
folder.claim()
print("claimed", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.kill()


def test_a_run_that_is_on(tmp_path: Path) -> None:
    write_run(tmp_path)
    with claimed(tmp_path):
        summary = summarise(tmp_path, "mine")
    assert (summary.run, summary.state, summary.step, summary.steps) == ("mine", "running", 5, 100)
    # The records are newer than the result, which has what they lack.
    assert (summary.loss, summary.valid_loss, summary.tokens_per_second) == (3.5, 2.5, 16.0)
    assert summary.seconds_left == 95 * 32 / 16
    assert summary.news_seconds is not None
    assert summary.news_seconds < 30


def test_a_run_whose_process_is_gone_is_killed(tmp_path: Path) -> None:
    write_run(tmp_path)
    with claimed(tmp_path) as process:
        assert summarise(tmp_path, "").state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        summary = summarise(tmp_path, "")
    assert (summary.state, summary.seconds_left) == ("killed", None)


def test_a_run_of_another_machine_is_known_by_its_sign_of_life(tmp_path: Path) -> None:
    write_run(tmp_path)
    for name in ("metrics.jsonl", "result.json"):
        os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    with claimed(tmp_path):
        (tmp_path / ".owner").write_text("another-host, process 1, 2")
        summary = summarise(tmp_path, "")
    assert (summary.state, summary.host) == ("running", "another-host")
    assert summary.news_seconds == pytest.approx(3600, abs=60)
    sign = tmp_path / ".lock.alive"
    assert sign.exists()
    os.utime(sign, (time.time() - 120,) * 2)
    assert summarise(tmp_path, "").state == "killed"
    # Taken away by an end that could not write its last words.
    sign.unlink()
    assert summarise(tmp_path, "").state == "killed"


def test_looking_keeps_nobody_out(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert summarise(tmp_path, "").state == "killed"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    RunFolder(tmp_path).claim()


def test_a_run_that_prepares_its_data_has_no_result_yet(tmp_path: Path) -> None:
    with claimed(tmp_path):
        summary = summarise(tmp_path, "")
    assert (summary.state, summary.step, summary.steps, summary.loss) == ("starting", None, None, None)
    assert summarise(tmp_path, "").state == "killed"


@pytest.mark.parametrize("state", ["finished", "stopped", "diverged", "refused", "failed"])
def test_an_end_keeps_its_name_and_words(tmp_path: Path, state: str) -> None:
    write_run(tmp_path, result={"state": state, "last_words": "loss = nan:\n training diverged"})
    summary = summarise(tmp_path, "")
    assert (summary.state, summary.last_words) == (state, "loss = nan: training diverged")
    assert summary.seconds_left is None


DAMAGED = [b"", b'{"state": "run', b"\xff\xfe", b"[1, 2]", b"[" * 100_000, b'"text"', b"null"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_is_told(tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path)
    (tmp_path / "result.json").write_bytes(content)
    summary = summarise(tmp_path, "")
    assert (summary.state, summary.step, summary.loss) == ("damaged", 5, 3.5)


@pytest.mark.parametrize(
    "content", [*DAMAGED, b'{"step": 7, "loss": null}', b'{"step": 7, "loss": "x"}', b'{"step": true}']
)
def test_damaged_records_leave_what_the_result_says(tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path, result={"state": "finished"})
    (tmp_path / "metrics.jsonl").write_bytes(content)
    summary = summarise(tmp_path, "")
    assert (summary.state, summary.steps, summary.valid_loss) == ("finished", 100, 2.5)
    assert summary.step in (3, 7)


def test_values_of_the_wrong_kind_are_not_known(tmp_path: Path) -> None:
    write_run(tmp_path, result={"step": "3", "steps": None, "valid_loss": [1], "loss": True, "last_words": None})
    (tmp_path / "metrics.jsonl").unlink()
    summary = summarise(tmp_path, "")
    assert (summary.step, summary.steps, summary.loss, summary.valid_loss) == (None, None, None, None)


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    end = path.read_bytes()
    with path.open("wb") as stream:
        # A terabyte with nothing in it, which takes no room on the disk and an hour to read.
        stream.truncate(1 << 40)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n" + end + b'{"step": 6, "lo')
    began = time.monotonic()
    assert summarise(tmp_path, "").step == 5
    assert time.monotonic() - began < 1


def test_runs_are_found_at_any_depth_and_not_inside_one_another(tmp_path: Path) -> None:
    for name in ("b", "a/seed2", "a/seed1", "a/seed1/checkpoints/copy", ".hidden/run", "deep/er/still"):
        write_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["a/seed1", "a/seed2", "b", "deep/er/still"]
    assert list(find_runs(tmp_path / "b")) == [tmp_path / "b"]


def test_hundreds_of_runs_take_a_moment(tmp_path: Path) -> None:
    write_run(tmp_path / "first", steps=2000)
    for number in range(500):
        run_dir = tmp_path / f"sweep/run{number}"
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "result.json").write_text(json.dumps(RESULT))
        (run_dir / ".owner").write_text(f"{socket.gethostname()}, process 1, 2")
        (run_dir / ".lock").touch()
        os.link(tmp_path / "first" / "metrics.jsonl", run_dir / "metrics.jsonl")
    began = time.monotonic()
    summaries = [summarise(path, path.name) for path in find_runs(tmp_path / "sweep")]
    seconds = time.monotonic() - began
    assert len(summaries) == 500
    assert {summary.step for summary in summaries} == {2000}
    assert {summary.state for summary in summaries} == {"killed"}
    print(f"{seconds:.3f} s for 500 runs")
    assert seconds < 5
