import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest

from megaqk import cli
from megaqk.errors import UserError
from megaqk.tensorboard import name_runs
from megaqk.training.metrics import MetricsWriter


def write_run(run_dir: Path) -> Path:
    with closing(MetricsWriter(run_dir)) as writer:
        writer.write({"step": 1, "loss": 2.0})
    return run_dir


def test_names_are_what_tells_the_runs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_run(tmp_path / name) for name in ("timed/seed1", "timed/seed2", "plain/seed1")]
    assert list(name_runs(paths)) == ["plain/seed1", "timed/seed1", "timed/seed2"]
    assert list(name_runs(paths[:2])) == ["seed1", "seed2"]
    assert list(name_runs(paths[:1])) == ["seed1"]
    # However a run is written, it is one.
    monkeypatch.chdir(paths[0])
    (tmp_path / "link").symlink_to(paths[0])
    assert name_runs([Path(), paths[0], tmp_path / "link"]) == {"seed1": paths[0]}


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path / "run")
    for wrong in (tmp_path, tmp_path / "elsewhere"):
        assert cli.main(["tensorboard", str(run_dir), str(wrong)]) == 2
        line = f"megaqk: error: {wrong}: must be the folder of a run (run.dir), with tensorboard/ in it\n"
        assert capsys.readouterr().err == line


def test_a_run_inside_another_is_refused(tmp_path: Path) -> None:
    outer, inner = write_run(tmp_path / "a"), write_run(tmp_path / "a/b")
    with pytest.raises(UserError, match=r"a/b: lies in another of the runs, .*/a; show them apart"):
        name_runs([inner, outer])


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "megaqk", "tensorboard", str(run_dir), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"megaqk: error: --host 127.0.0.1 --port {port}: TensorBoard could not bind to port {port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "-1"], "--port = -1: must be from 0 to 65535"),
        (
            ["--host", "203.0.113.1"],
            "--host = 203.0.113.1: must be an address of this machine (Cannot assign requested",
        ),
    ],
)
def test_where_it_cannot_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: "list[str]", said: str
) -> None:
    assert cli.main(["tensorboard", str(write_run(tmp_path / "run")), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_on_loopback_until_a_signal_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    runs = [write_run(tmp_path / name) for name in ("timed", "plain")]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "megaqk", "tensorboard", *map(str, runs), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[1].startswith("http://127.0.0.1:")
            assert words[2:5] == ["with", "plain,", "timed;"]
            with build_opener(ProxyHandler({})).open(words[1], timeout=20) as answer:
                assert b"<title>TensorBoard" in answer.read()
            process.send_signal(number)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert not list(temporary.glob("megaqk-*"))
