import argparse
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megaqk.check import add_check_command
from megaqk.errors import UserError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "nine", "old", "dogs", "run", "home", "by", "night"]
SMALL = """
model: {num_layers: 2, hidden_size: 16, num_heads: 2, vocab_size: 384}
data: {text: FOLDER/text.jsonl, vocab_size: 300, cache_dir: FOLDER/cache, split: [0.7, 0.3, 0]}
training: {steps: 20, global_batch_size: 8, micro_batch_size: 2, sequence_length: 8}
"""


def check(tmp_path: Path, *words: str) -> int:
    words_of = random.Random(0)
    lines = [" ".join(words_of.choices(WORDS, k=words_of.randint(10, 40))) for _ in range(60)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("FOLDER", str(tmp_path)), encoding="utf-8")
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
        ("model.vocab_size=128", "model.vocab_size = 128: must be at least the tokenizer's 300"),
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


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.text=nowhere.jsonl"], "data.text = nowhere.jsonl: must be a file"),
        (["data.vocab_size=2", "model.vocab_size=null"], "data.vocab_size = 2: "),
        (["data.vocab_size=100000", "model.vocab_size=null"], "data.vocab_size = 100000: this text gives at most "),
        (["training.sequence_length=2000", "model.positions=rotary"], "data.split = [0.7, 0.3, 0.0]: "),
        (["evaluation.sets=[{name: a, text: nowhere.txt}]"], "evaluation.sets[0].text = nowhere.txt: must be a file"),
        (["evaluation.sets=[{name: a, corpus: nowhere}]"], "nowhere.idx: No such file"),
        (["evaluation.sets=[{name: a, text: FOLDER/short.txt}]"], "tokens, a sample takes training.sequence_length"),
        (["data.cache_dir=FOLDER/text.jsonl"], "data.cache_dir = "),
        (["data.text=null", "data.sources=[{corpus: nowhere, weight: 1}]", "data.tokenizer=TOKENIZER"], "nowhere"),
        (["data.text=null", "data.corpus=nowhere"], "nowhere"),
    ],
)
def test_check_refuses_what_the_run_would(tmp_path: Path, overrides: list[str], said: str) -> None:
    check(tmp_path, "CONFIG", "--world-size", "1")
    [tokenizer] = tmp_path.glob("cache/*/tokenizer.model")
    (tmp_path / "short.txt").write_text("so")
    words = [word.replace("FOLDER", str(tmp_path)).replace("TOKENIZER", str(tokenizer)) for word in overrides]
    with pytest.raises(UserError) as caught:
        check(tmp_path, "CONFIG", "--world-size", "1", *words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_only_the_machine_can_tell_is_said_and_not_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["training.precision=fp16", "optimizer.implementation=apex"]
    assert check(tmp_path, "CONFIG", "--world-size", "1", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": needs")[0] for line in lines[-2:]] == [
        "not on this machine: training.precision = fp16",
        "not on this machine: optimizer.implementation = apex",
    ]


def test_whether_it_fits_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, "CONFIG", "--world-size", "2")
    assert "Memory in GiB" in capsys.readouterr().out
    assert check(tmp_path, "CONFIG", "--world-size", "2", "--gpu", "H100-80GB") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("fits H100-80GB: ")
    assert last.endswith("of the 71.1 that may be planned with (90% of 79)")
    large = ["model.hidden_size=8192", "model.num_layers=30", "training.precision=bf16"]
    with pytest.raises(UserError) as caught:
        check(tmp_path, "CONFIG", "--world-size", "2", "--gpu", "A100-40GB", *large)
    # 24 billion parameters x (2 + 4 + 2 bytes + 12 on two ranks), at least.
    said = re.fullmatch(
        r"memory = ([\d.]+) GiB: must be at most 35.1 on A100-40GB \(90% of 39\), ([\d.]+) .*", str(caught.value)
    )
    assert said
    assert float(said[1]) > 24.2 * 14 / 1.0737
    assert float(said[2]) == pytest.approx(float(said[1]) - 35.1, abs=0.1)
    ways = re.findall(r"([\d.]+) with (\S+?),? ", str(caught.value))
    assert {word for _, word in ways} >= {"parallel.zero_stage=3", "deepspeed.immediate_grad_update=true"}
    assert all(float(less) < float(said[1]) for less, _ in ways)


@pytest.mark.parametrize("memory", ["-1", "0", "nan", "inf"])
def test_a_memory_that_no_gpu_has_is_refused(tmp_path: Path, memory: str) -> None:
    with pytest.raises(UserError, match=rf"^--memory = {memory}: must be a positive number of GiB$"):
        check(tmp_path, "CONFIG", "--world-size", "1", f"--memory={memory}")


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--gpu = H100: must be one of B200, .*; or give --memory GIB$"):
        check(tmp_path, "CONFIG", "--world-size", "1", "--gpu", "H100")


def test_a_large_text_is_prepared_by_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaqk.corpus.prepare._SMALL_BYTES", 1)
    assert check(tmp_path, "CONFIG", "--world-size", "1") == 0
    assert not (tmp_path / "cache").exists()
    assert "is prepared at the start of the run" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^data.vocab_size = 2: "):
        check(tmp_path, "CONFIG", "--world-size", "1", "data.vocab_size=2")


def test_a_reader_may_stop_reading(tmp_path: Path) -> None:
    """As in `megaqk check ... | head -n 1`."""
    check(tmp_path, "CONFIG", "--world-size", "1")
    command = [sys.executable, "-m", "megaqk", "check", str(tmp_path / "small.yaml"), "--world-size", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
