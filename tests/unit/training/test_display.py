import io
import re

import pytest

from megaqk.training.display import ProgressDisplay

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


@pytest.mark.parametrize("resume_step", [0, 5])
def test_plain_lines_into_a_file(resume_step: int) -> None:
    stream = io.StringIO()
    with ProgressDisplay(200, resume_step=resume_step, stream=stream) as display:
        for step in range(resume_step + 1, 11):
            display.advance(step)
        display.show(RECORD)
        display.show({"step": 10, "valid_loss": 2.0, "valid_perplexity": 7.389})
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"step 10/200  loss 3\.2500  lr 1\.00e-03  12,346 tokens/s  left \d+:\d\d:\d\d", first)
    assert second == "step 10/200  valid loss 2.0000  perplexity 7.39"


def test_one_bar_on_a_terminal() -> None:
    stream = Terminal()
    with ProgressDisplay(200, resume_step=5, stream=stream) as display:
        for step in range(6, 11):
            display.advance(step)
        display.show(RECORD)
        display.message("a word")
    text = stream.getvalue()
    assert "10/200" in text
    assert "loss 3.2500  lr 1.00e-03  12,346 tokens/s" in text
    assert "a word\n" in text
    # A bar redraws its own line: it never leaves more lines than messages and its own last state.
    assert text.count("\n") == 2


def test_the_time_left_follows_the_pace_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    display = ProgressDisplay(100, resume_step=40, stream=stream)
    clock[0] += 20.0
    display.show({"step": 50, "loss": 1.0})
    assert stream.getvalue().endswith("left 0:01:40\n")


def test_an_unknown_value_is_left_out() -> None:
    stream = io.StringIO()
    ProgressDisplay(10, stream=stream).show({"step": 0, "loss": None, "lr/base": None})
    assert stream.getvalue() == "step 0/10  left ?\n"


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(10, enabled=False) as display:
        display.advance(1)
        display.show(RECORD)
        display.message("a word")
    assert capsys.readouterr() == ("", "")
