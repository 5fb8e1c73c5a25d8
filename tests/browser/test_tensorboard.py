"""TensorBoard as a person sees it: `megaqk tensorboard` on runs that were really trained, in a headless Chromium."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 60, 20
TRAINING = (
    f"parallel.tensor=1 parallel.pipeline=1 model.hidden_size=32 training.sequence_length=32 training.steps={STEPS} "
    f"schedule.warmup_steps=5 data.vocab_size=512 logging.every=1 evaluation.every=10 checkpoint.every={EVERY}"
).split()
SIZE = (1500, 1000)
CONTENT = (360, 80, SIZE[0] - 20, SIZE[1])
"""Where the page has what differs from run to run: right of the side bar, below the head."""


def pretrain(folder: Path, name: str, *overrides: str) -> list[str]:
    words = [f"run.dir={folder / 'runs' / name}", f"data.cache_dir={folder / 'cache'}", *TRAINING, *overrides]
    return [sys.executable, "-m", "megaqk", "pretrain", str(ROOT / "configs/quickstart.yaml"), *words]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two arms; one of them was killed in the middle and went on, and so is finished and resumed."""
    folder = tmp_path_factory.mktemp("watched")
    subprocess.run(pretrain(folder, "baseline", "qk_timing.enabled=false"), timeout=120, check=True)
    timed = pretrain(folder, "timed", "qk_timing.release_end=null")
    with subprocess.Popen(timed) as process:
        deadline = time.monotonic() + 60
        metrics = folder / "runs/timed/metrics.jsonl"
        while not metrics.exists() or f'"step": {EVERY + 3},' not in metrics.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    subprocess.run(timed, timeout=120, check=True)
    assert "resumed after step" in (folder / "runs/timed/logs/rank0.log").read_text()
    return [folder / "runs/baseline", folder / "runs/timed"]


@pytest.fixture(scope="module")
def address(runs: list[Path]) -> Iterator[str]:
    command = [sys.executable, "-m", "megaqk", "tensorboard", *map(str, runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            deadline = time.monotonic() + 30
            while len(asked(address)("runs")) < len(runs):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def asked(address: str) -> Callable[..., Any]:
    opener = build_opener(ProxyHandler({}))

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{address}data/{path}", data, {"Content-Type": "application/json"})
        with opener.open(request, timeout=20) as answer:
            return json.loads(answer.read())

    return ask


def chromium(address: str, *options: str, folder: Path) -> str:
    """Open a page, give it 15 seconds of its own time and return what is printed."""
    command = ["chromium", "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={SIZE[0]},{SIZE[1]}"]
    command += ["--virtual-time-budget=15000", *options, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def test_the_server_has_what_the_runs_recorded(address: str, runs: list[Path]) -> None:
    ask = asked(address)
    assert ask("runs") == ["baseline", "timed"]
    layout = ask("plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]][:2] == [
        "loss",
        "learning rate and multiplier by group",
    ]
    for run in runs:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for pattern, tag in (("^loss$", "loss"), ("^valid_loss$", "valid_loss")):
            found = ask(f"plugin/custom_scalars/scalars?run={run.name}&tag={quote(pattern)}")["tag_to_events"]
            # One continuous curve: every step once, also where the run was killed and went on.
            points = [(step, value) for _, step, value in found[tag]]
            assert points == [(r["step"], pytest.approx(r[tag], rel=1e-6)) for r in records if tag in r]
        assert records[-2]["step"] == STEPS
    rates = ask(f"plugin/custom_scalars/scalars?run=timed&tag={quote('^multiplier/.*$')}")["tag_to_events"]
    assert len(rates) > 2
    assert min(value for events in rates.values() for _, _, value in events) == pytest.approx(0.1)


def test_the_configuration_is_served_as_text(address: str) -> None:
    ask = asked(address)
    texts = {run: ask(f"plugin/text/text?run={run}&tag=configuration") for run in ("baseline", "timed")}
    assert "enabled: false" in texts["baseline"][0]["text"]
    assert [text["step"] for text in texts["timed"]] == [1, EVERY + 1]


def test_the_table_has_the_final_validation_loss(address: str, runs: list[Path]) -> None:
    ask = asked(address)
    experiment = ask("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    columns = [{"hparam": info["name"], "includeInResult": True} for info in experiment["hparamInfos"]]
    columns += [{"metric": info["name"]} for info in experiment["metricInfos"]]
    status = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    wanted = {"allowedStatuses": status, "colParams": columns, "startIndex": 0, "sliceSize": 10}
    groups = ask("plugin/hparams/session_groups", {"experimentName": "", **wanted})["sessionGroups"]
    assert [group["name"] for group in groups] == ["baseline", "timed"]
    # A value may be a number in one run and null in another.
    assert [group["hparams"]["qk_timing.release_end"] for group in groups] == [0.4, "null"]
    assert [group["hparams"]["qk_timing.enabled"] for group in groups] == [False, True]
    for group, run in zip(groups, runs, strict=True):
        [session] = group["sessions"]
        assert session["status"] == "STATUS_SUCCESS"
        final = json.loads((run / "result.json").read_text())["valid_loss"]
        [value] = [metric["value"] for metric in group["metricValues"] if metric["name"]["tag"] == "valid_loss"]
        assert value == pytest.approx(final, rel=1e-6)


def test_the_pages_are_drawn(address: str, tmp_path: Path) -> None:
    page = chromium(f"{address}#timeseries", "--dump-dom", folder=tmp_path)
    for word in ("baseline", "timed", "valid_loss", "multiplier"):
        assert word in page, f"{word} is not on the page"
    for tab in ("custom_scalars", "hparams", "text"):
        picture = tmp_path / f"{tab}.png"
        chromium(f"{address}#{tab}", f"--screenshot={picture}", folder=tmp_path)
        print(picture)
        pixels = np.asarray(Image.open(picture).convert("RGB").crop(CONTENT)).astype(int)
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        assert (pixels.max(axis=2) < 100).sum() > 500, f"{picture}: no text"
        # Curves are the only bright colours of that page; an empty one has fewer than a hundred such pixels.
        if tab == "custom_scalars":
            assert (spread > 80).sum() > 3000, f"{picture}: no curves"
