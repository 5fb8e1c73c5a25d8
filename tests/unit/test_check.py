import argparse
from pathlib import Path

import pytest

from megaqk.check import add_check_command
from megaqk.errors import UserError

SMALL = """
model: {num_layers: 2, hidden_size: 16, num_heads: 2, vocab_size: 64}
data: {text: builtin, vocab_size: 64}
training: {steps: 20, global_batch_size: 8, micro_batch_size: 2, sequence_length: 8}
"""


def check(tmp_path: Path, *words: str) -> int:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_check_command(parser.add_subparsers())
    arguments = parser.parse_args(["check", *(str(path) if word == "CONFIG" else word for word in words)])
    status: int = arguments.run(arguments)
    return status


@pytest.mark.parametrize(
    "words",
    [
        "CONFIG --world-size 4 parallel.tensor=2 parallel.pipeline=2",
        "CONFIG parallel.tensor=2 parallel.pipeline=2 --world-size 4",
        "--world-size 4 CONFIG parallel.tensor=2 parallel.pipeline=2",
        "--world-size=4 CONFIG parallel.tensor=2 parallel.pipeline=2",
    ],
)
def test_overrides_may_stand_on_either_side(tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, *words.split()) == 0
    assert "4 = pipeline 2 x data 1 x tensor 2" in capsys.readouterr().out


def test_no_override_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "CONFIG", "--world-size", "1") == 0
    assert "Parameter groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "data.vocab_size=65",
            "model.vocab_size = 64: must be at least the tokenizer's 65",
        ),
        ("model.hidden_size=100000000000", "model.hidden_size = 100000000000: must be at most 1000000"),
        ("training.steps=x", "training.steps = x: must be an integer"),
        ("parallel.tensor=2", "world size = 1: must be a multiple of parallel.tensor x parallel.pipeline = 2 x 1 = 2"),
        (
            "deepspeed.reduce_bucket=1",
            "deepspeed.reduce_bucket = 1: unknown key; did you mean deepspeed.reduce_bucket_size?",
        ),
        (
            "qk_timing={enabled: true, projections: [ffn_gate]}",
            "qk_timing.projections = ffn_gate: names no parameter of this model; model.feed_forward = gelu has no gate",
        ),
    ],
)
def test_refusals_come_from_every_check(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        check(tmp_path, "CONFIG", "--world-size", "1", override)
    assert str(caught.value) == line
