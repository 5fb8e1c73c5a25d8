import json
import subprocess
import sys
from pathlib import Path

import pytest

from megaqk import cli
from megaqk.runs import table
from megaqk.training.run_summary import RunSummary

RESULT = {"state": "finished", "step": 10, "steps": 10, "loss": 2.5, "valid_loss": None, "last_words": ""}
RECORD = {"step": 10, "tokens": 320, "loss": 2.25, "tokens_per_second": 12345.6}


def write_run(run_dir: Path, **changes: object) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "result.json").write_text(json.dumps(RESULT | changes))
    (run_dir / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "timed/seed1", valid_loss=2.75)
    write_run(tmp_path / "baseline", state="diverged", last_words="loss = nan at step 10: training diverged")
    assert cli.main(["runs", str(tmp_path)]) == 0
    titles, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert titles == [
        "run",
        "state",
        "step",
        "loss",
        "valid",
        "loss",
        "tokens/s",
        "left",
        "last",
        "news",
        "last",
        "words",
    ]
    assert rows[0][:7] == ["baseline", "diverged", "10/10", "2.2500", "-", "12,346", "-"]
    assert rows[0][9:] == ["loss", "=", "nan", "at", "step", "10:", "training", "diverged"]
    assert rows[1][:7] == ["timed/seed1", "finished", "10/10", "2.2500", "2.7500", "12,346", "-"]


def test_json_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "one")
    assert cli.main(["runs", "--json", str(tmp_path)]) == 0
    [run] = json.loads(capsys.readouterr().out)
    assert (run["run"], run["state"], run["loss"], run["valid_loss"]) == ("one", "finished", 2.25, None)
    assert set(run) == set(RunSummary.__dataclass_fields__)


def test_columns_are_aligned_and_cut_at_the_terminal() -> None:
    def summary(run: str, step: int, words: str) -> RunSummary:
        return RunSummary(
            run=run, state="running", step=step, steps=1000, loss=1.0, valid_loss=None, tokens_per_second=1.0,
            seconds_left=90061.2, news_seconds=3.0, host=None, last_words=words,
        )  # fmt: skip

    runs = [summary("short", 1, "words " * 20), summary("a/longer/name", 1000, "")]
    lines = table(runs, None)
    assert lines[1].index("1/1000") + len("1/1000") == lines[2].index("1000/1000") + len("1000/1000")
    assert "1 day, 1:01:01" in lines[1]
    assert "0:00:03 ago" in lines[1]
    assert max(map(len, table(runs, 60))) == 60


def test_no_runs_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs below {tmp_path}\n"
    assert cli.main(["runs", str(tmp_path / "elsewhere")]) == 2
    assert capsys.readouterr().err == f"megaqk: error: {tmp_path}/elsewhere: must be a folder, below which runs are\n"


def test_a_reader_that_has_enough_is_no_fault(tmp_path: Path) -> None:
    for number in range(400):
        write_run(tmp_path / f"run{number}", last_words="w" * 400)
    command = f"{sys.executable} -m megaqk runs {tmp_path} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("run ")
    assert done.stderr == ""
