"""What the command line refuses and how, and what a run leaves behind."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaqk.config.loading import load_config
from tests.distributed import commands
from tests.harness import run_distributed

# Nothing serves a rendezvous here: whoever starts a process group before the refusal waits for it until the limit.
LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
CODE = """
import sys
from megaqk.cli import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported for a refusal"
sys.exit(status)
"""


def refuse(*argv: str, world: int = 1, variables: dict[str, str] | None = None) -> str:
    """Run a command line that must be refused; return its one line."""
    environment = {**os.environ, **LAUNCHED, "WORLD_SIZE": str(world), **(variables or {})}
    result = subprocess.run(
        [sys.executable, "-c", CODE, *argv], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("megaqk: error: ")
    return line


@pytest.mark.parametrize(
    ("overrides", "world", "parts"),
    [
        (["model.num_layer=3"], 1, ["model.num_layer", "3"]),
        (["modl.num_layers=3"], 1, ["modl"]),
        (["model.num_layers=many"], 1, ["model.num_layers", "many", "integer"]),
        (["optimizer.lr=-1"], 1, ["optimizer.lr", "-1"]),
        (["parallel.tensor=3"], 3, ["model.num_heads", "4", "parallel.tensor = 3"]),
        (["parallel.tensor=2"], 3, ["world size = 3", "parallel.tensor"]),
        ([], 3, ["training.global_batch_size = 8", "6"]),
        (["parallel.pipeline=2", "parallel.zero_stage=2"], 2, ["parallel.zero_stage", "parallel.pipeline = 2"]),
        (["parallel.pipeline=5"], 5, ["model.num_layers = 4", "parallel.pipeline = 5"]),
        (["training.steps"], 1, ["training.steps"]),
    ],
)
def test_refused_in_one_line_before_anything_starts(
    tmp_path: Path, write_config: Callable[..., Path], overrides: list[str], world: int, parts: list[str]
) -> None:
    line = refuse("pretrain", str(write_config(tmp_path)), *overrides, world=world)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refuse("pretrain", str(tmp_path / "nowhere.yaml"))


def test_a_missing_text_is_named(
    tmp_path: Path, write_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    argv = ["pretrain", str(config), f"data.text={tmp_path / 'nowhere.jsonl'}"]
    assert run_distributed(commands.run_command, 1, argv, init=False) == [2]
    output = capfd.readouterr().out
    [line] = [line for line in output.splitlines() if line.startswith("megaqk: ")]
    assert "nowhere.jsonl" in line
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]
) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """A run of one process as a user starts it, its output into a pipe."""
    folder = tmp_path_factory.mktemp("command")
    command = [sys.executable, "-m", "megaqk", "pretrain", str(write_config(folder)), "optimizer.lr=0.002"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def test_the_configuration_is_kept(run: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = run
    kept = load_config(folder / "config.yaml")
    assert kept == load_config(folder.parent / "config.yaml", ["optimizer.lr=0.002"])


def records(folder: Path) -> "list[dict[str, float]]":
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_records(run: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = run
    training = [record for record in records(folder) if "loss" in record]
    groups = ("decay", "no_decay", "upper_qk", "upper_qk.no_decay")
    expected = {
        "step",
        "tokens",
        "loss",
        "grad_norm",
        "skipped_steps",
        "tokens_per_second",
        "model_flops_per_second",
        "mfu",
    }
    expected |= {f"{kind}/{group}" for kind in ("lr", "multiplier") for group in groups} | {"peak_memory_bytes"}
    assert [record["step"] for record in training] == list(range(1, 11))
    for record in training:
        assert set(record) == expected
        assert record["tokens"] == record["step"] * 8 * 16
        assert 0 < record["mfu"] < 1
        assert record["tokens_per_second"] > 0
        assert record["peak_memory_bytes"] > 1 << 20
    assert training[-1]["loss"] < training[0]["loss"] - 0.1


def test_validation_records(run: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = run
    valid = [record for record in records(folder) if "valid_loss" in record]
    assert [record["step"] for record in valid] == [5, 10]
    for record in valid:
        assert set(record) == {"step", "tokens", "valid_loss", "valid_perplexity", "valid_bits_per_byte"}
        assert record["valid_perplexity"] == pytest.approx(math.exp(record["valid_loss"]))


def test_tensorboard_has_the_same_numbers(run: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = run
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    read: dict[tuple[str, int], float] = {}
    for tag in events.Tags()["scalars"]:
        read.update({(tag, point.step): point.value for point in events.Scalars(tag)})
    written = {
        (name, int(record["step"])): value
        for record in records(folder)
        for name, value in record.items()
        if name != "step"
    }
    assert read.keys() == written.keys()
    assert all(read[key] == pytest.approx(value, rel=1e-6) for key, value in written.items())


def test_checkpoints_and_curves(run: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = run
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-10", "step-9"]
    for step in (9, 10):
        manifest = json.loads((folder / "checkpoints" / f"step-{step}" / "manifest.json").read_text())
        assert manifest["progress"] == {
            "step": step,
            "samples": 8 * step,
            "tokens": 128 * step,
            "skipped": 0,
            "left_out": [],
        }
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_plain_lines_into_a_pipe(run: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, result = run
    output = result.stdout + result.stderr
    assert "\r" not in output
    assert "\x1b" not in output
    assert "Traceback" not in output
    steps = [line for line in output.splitlines() if line.startswith("step ") and "tokens/s" in line]
    assert len(steps) == 10
    assert all("loss " in line and "lr " in line and "left " in line for line in steps)
    assert f"megaqk tensorboard {folder}" in output
    assert "unigram" in output


def test_a_launch_that_cannot_be_is_one_line(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    assert "must be integers" in refuse("pretrain", config, variables={"WORLD_SIZE": "two"})
    assert "rank = 5: must be" in refuse("pretrain", config, variables={"RANK": "5"})
