import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megaqk.runtime.logs import log_file, start_logging, stop_logging
from megaqk.training.hooks.display import Display
from megaqk.training.progress import Progress
from megaqk.training.trainer import Step

RECORD = {
    "step": 10,
    "loss": 3.25,
    "lr/base": 1e-3,
    "lr/upper_qk": 1e-4,
    "multiplier/upper_qk": 0.1,
    "tokens_per_second": 12345.6,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_of(total: int, first: int = 0, rank: int = 0) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(training=SimpleNamespace(steps=total)),
        progress=Progress(step=first),
        world=SimpleNamespace(rank=rank),
        log=logging.getLogger("megaqk"),
    )


def step(number: int) -> Step:
    return Step(progress=Progress(step=number), rates=[], last=False)


@contextmanager
def printing(folder: Path, stream: io.StringIO) -> Iterator[None]:
    """Rank 0 with its logger started, its terminal or pipe being a stream."""
    before, sys.stderr = sys.stderr, stream
    start_logging(folder, 0)
    try:
        yield
    finally:
        stop_logging()
        sys.stderr = before


@pytest.mark.parametrize("first", [0, 5])
def test_plain_lines_into_a_file(first: int, tmp_path: Path) -> None:
    stream, display, run = io.StringIO(), Display(), run_of(200, first)
    with printing(tmp_path, stream):
        display.start(run)
        for number in range(first + 1, 11):
            display.step(run, step(number))
        display.record(run, RECORD)
        valid = {"valid_loss": 2.0, "valid_perplexity": 7.389}
        books = {"valid/books/loss": 1.0, "valid/books/perplexity": 2.718, "valid/books/bits_per_byte": 0.5}
        display.record(run, {"step": 10, **valid, **books})
        run.log.info("a word")
    one, two, other, three = stream.getvalue().splitlines()
    assert re.fullmatch(r"step 10/200  loss 3\.2500  lr 1\.00e-03  12,346 tokens/s  left \d+:\d\d:\d\d", one)
    assert two == "step 10/200  valid loss 2.0000  perplexity 7.39"
    assert other == "step 10/200  valid/books loss 1.0000  perplexity 2.72  bits per byte 0.5000"
    assert three == "megaqk: a word"
    # The same in the rank's own file, with times.
    assert [line.split(" INFO ")[1] for line in log_file(tmp_path, 0).read_text().splitlines()] == [
        one,
        two,
        other,
        "a word",
    ]


def test_one_bar_on_a_terminal(tmp_path: Path) -> None:
    stream, display, run = Terminal(), Display(), run_of(200, 5)
    with printing(tmp_path, stream):
        display.start(run)
        for number in range(6, 11):
            display.step(run, step(number))
        display.record(run, RECORD)
        run.log.info("a word")
        display.close()
    text = stream.getvalue()
    assert "10/200" in text
    assert "loss 3.2500  lr 1.00e-03  12,346 tokens/s" in text
    assert "a word\n" in text
    # A bar redraws its own line: it never leaves more lines than messages and its own last state.
    assert text.count("\n") == 2


def test_the_time_left_follows_the_pace_of_this_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = [100.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    display, run = Display(), run_of(100, 40)
    with printing(tmp_path, stream):
        display.start(run)
        clock[0] += 20.0
        display.record(run, {"step": 50, "loss": 1.0})
    assert stream.getvalue().endswith("left 0:01:40\n")


def test_an_unknown_value_is_left_out(tmp_path: Path) -> None:
    stream, display, run = io.StringIO(), Display(), run_of(10)
    with printing(tmp_path, stream):
        display.start(run)
        display.record(run, {"step": 0, "loss": None, "lr/base": None})
    assert stream.getvalue() == "step 0/10  left ?\n"


def test_other_ranks_show_nothing_and_log_into_their_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(tmp_path, 3)
    display, run = Display(), run_of(10, rank=3)
    display.start(run)
    display.step(run, step(1))
    display.record(run, RECORD)
    assert not log_file(tmp_path, 3).exists()
    run.log.warning("a word")
    display.close()
    stop_logging()
    assert capsys.readouterr() == ("", "")
    assert log_file(tmp_path, 3).read_text().endswith(" WARNING a word\n")
