import io

import pytest

from megaqk.corpus import progress_bar
from megaqk.corpus.progress_bar import ProgressLine


def test_elsewhere_than_on_a_terminal_it_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    shown = ProgressLine("tokenising", shown=True)
    # A run that goes on from a quarter: what is left is judged by this run's speed alone.
    for seconds, tokens, fraction in ((1, 0, 0.25), (5, 3_000_000, 0.35), (20, 8_000_000, 0.5), (21, 8_100_000, 0.51)):
        now[0] = 100.0 + seconds
        shown.update(tokens, [fraction])
    shown.close()
    assert capsys.readouterr().err == "tokenising: 50%, 8.0M tokens, 0.40M tokens/s, 40 s left\n"


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    silent = ProgressLine("tokenising", shown=False)
    silent._every = 0.0
    silent.update(1, [0.5])
    silent.close()
    assert capsys.readouterr().err == ""


def test_without_a_known_size_there_is_no_percentage_and_no_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    shown = ProgressLine("tokenising", shown=True)
    for seconds, fraction in ((10, None), (20, None), (40, 1.0)):
        now[0] = 100.0 + seconds
        shown.update(seconds * 100_000, [fraction])
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "tokenising: 1.0M tokens, 0.10M tokens/s",
        "tokenising: 2.0M tokens, 0.10M tokens/s",
        "tokenising: 100%, 4.0M tokens, 0.10M tokens/s",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_renews_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown = ProgressLine("tokenising", shown=True)
    shown._every = 0.0
    shown.update(2_000_000, [0.1, None])
    shown.update(3_000_000, [0.4, 0.6])
    shown.close()
    first, second, last = terminal.getvalue().split("\r")[1:]
    assert first.startswith("tokenising: 2.0M tokens, ")
    assert second.startswith("tokenising: 50%, 3.0M tokens, ")
    assert last == "\033[K"
