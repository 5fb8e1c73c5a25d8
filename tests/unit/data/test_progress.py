import pytest

from megaqk.data import progress
from megaqk.data.progress import Progress


def test_elsewhere_than_on_a_terminal_it_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("tokenising", shown=True)
    # A run that goes on from a quarter: what is left is judged by this run's speed alone.
    for seconds, tokens, fraction in ((1, 0, 0.25), (5, 3_000_000, 0.35), (20, 8_000_000, 0.5), (21, 8_100_000, 0.51)):
        now[0] = 100.0 + seconds
        shown.update(tokens, fraction)
    shown.close()
    assert capsys.readouterr().err == "tokenising: 50%, 8.0M tokens, 0.40M tokens/s, 40 s left\n"


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    silent = Progress("tokenising", shown=False)
    silent.update(1, 0.5)
    silent.close()
    assert capsys.readouterr().err == ""
