"""What asks a run to stop leads to one checkpoint of all ranks and status 75, from which the same command goes on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.errors import AGAIN
from tests.distributed import commands
from tests.harness import run_distributed

WORLD, STEPS, AT = 2, 12, 6
RANK = 1
"""The one that the signals go to."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path]) -> "dict[int, float]":
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = ["pretrain", str(config_of(folder, write_config))]
    assert run_distributed(commands.run_command, WORLD, argv, init=False) == [0] * WORLD
    return losses(folder)


def config_of(folder: Path, write_config: Callable[..., Path], **training: Any) -> Path:
    return write_config(folder, training={"steps": STEPS, **training}, evaluation={"every": AT, "batches": 1})


def losses(folder: Path) -> "dict[int, float]":
    records = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    found = [(record["step"], record["loss"]) for record in records if "loss" in record]
    assert len(found) == len(dict(found))
    return dict(found)


def run_and_signal(argv: list[str], moment: str, number: int) -> int:
    """A command in which a rank sends itself a signal in the middle of something, once step AT is being taken."""
    from megaqk.training.engine import TrainingEngine
    from megaqk.training.trainer import Trainer

    owner, name = {"step": (Trainer, "step"), "save": (Trainer, "save"), "evaluation": (TrainingEngine, "evaluate")}[
        moment
    ]
    real, calls = getattr(owner, name), 0

    def act(self: Any, *args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if int(os.environ["RANK"]) == RANK and calls == {"step": AT, "save": 2, "evaluation": 1}[moment]:
            os.kill(os.getpid(), number)
        return real(self, *args, **keys)

    setattr(owner, name, act)
    return commands.run_command(argv)


@pytest.mark.parametrize(
    ("moment", "number"),
    [("step", signal.SIGTERM), ("save", signal.SIGUSR1), ("evaluation", signal.SIGINT)],
    ids=["step-SIGTERM", "save-SIGUSR1", "evaluation-SIGINT"],
)
def test_a_signal_to_one_rank(
    tmp_path: Path,
    write_config: Callable[..., Path],
    undisturbed: "dict[int, float]",
    capfd: pytest.CaptureFixture[str],
    moment: str,
    number: signal.Signals,
) -> None:
    argv = ["pretrain", str(config_of(tmp_path, write_config))]
    statuses = run_distributed(run_and_signal, WORLD, argv, moment, int(number), init=False)
    assert statuses == [AGAIN] * WORLD
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["state"], result["stopped_by"]) == ("stopped", number.name)
    # After the step in which it came, or the one after it.
    assert result["step"] in (AT, AT + 1, AT + 2)
    assert (tmp_path / "run" / "checkpoints" / f"step-{result['step']}" / "manifest.json").exists()
    output = capfd.readouterr().out
    line = f"megaqk: stopped by {number.name} (rank {RANK}) after step {result['step']}, which is saved"
    assert output.count(line) == 1
    assert "error" not in output
    assert run_distributed(commands.run_command, WORLD, argv, init=False) == [0] * WORLD
    assert losses(tmp_path) == undisturbed


def run_signalled_at_the_end(argv: list[str]) -> int:
    """A command that gets a signal when all is done but the last words."""
    from megaqk.training.trainer import Hook, Trainer

    class Late(Hook):
        def end(self, run: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    return commands.run_with(argv, Late())


def test_a_run_that_is_finished_is_not_stopped(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    argv = ["pretrain", str(config_of(tmp_path, write_config))]
    assert run_distributed(run_signalled_at_the_end, WORLD, argv, init=False) == [0] * WORLD
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "finished"


def run_and_make_file(argv: list[str], path: str) -> int:
    """A command that makes a file at step AT; steps take so long that the first rank looks for it."""
    import time

    from megaqk.training.trainer import Hook, Step, Trainer

    class Maker(Hook):
        def step(self, run: Trainer, now: Step) -> None:
            if now.progress.step == AT and run.world.rank:
                Path(path).touch()
            time.sleep(0.4)

    return commands.run_with(argv, Maker())


def test_a_stop_file(
    tmp_path: Path,
    write_config: Callable[..., Path],
    undisturbed: "dict[int, float]",
    capfd: pytest.CaptureFixture[str],
) -> None:
    argv, stop = ["pretrain", str(config_of(tmp_path, write_config))], tmp_path / "run" / "stop"
    assert run_distributed(run_and_make_file, WORLD, argv, str(stop), init=False) == [AGAIN] * WORLD
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["state"], result["stopped_by"]) == ("stopped", "stop file")
    assert AT <= result["step"] < STEPS
    assert not stop.exists()
    # One that is there before the start has the run not begin, once.
    stop.touch()
    assert run_distributed(commands.run_command, WORLD, argv, init=False) == [AGAIN] * WORLD
    assert "stopped by the stop file before its first step; the same command goes on" in capfd.readouterr().out
    assert run_distributed(commands.run_command, WORLD, argv, init=False) == [0] * WORLD
    assert losses(tmp_path) == undisturbed


def run_blind_in_set_up(argv: list[str]) -> int:
    """A command that looks for time limits after steps alone."""
    from megaqk.training import stopping

    stopping._LOOK_SECONDS = 60.0
    return commands.run_command(argv)


def test_a_time_limit(tmp_path: Path, write_config: Callable[..., Path], undisturbed: "dict[int, float]") -> None:
    argv = ["pretrain", str(config_of(tmp_path, write_config, time_limit=1e-3))]
    reached = []
    for _ in range(3):
        assert run_distributed(run_blind_in_set_up, WORLD, argv, init=False) == [AGAIN] * WORLD
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert (result["state"], result["stopped_by"]) == ("stopped", "time limit")
        reached.append(result["step"])
    # Told after the first step, heard after the second; alone it is the first.
    assert reached == [2, 4, 6]
    argv[1] = str(config_of(tmp_path, write_config))
    assert run_distributed(commands.run_command, WORLD, argv, init=False) == [0] * WORLD
    assert losses(tmp_path) == undisturbed


def test_one_process_stops_after_the_very_step(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    argv = ["pretrain", str(config_of(tmp_path, write_config, time_limit=1e-3))]
    assert run_distributed(run_blind_in_set_up, 1, argv, init=False) == [AGAIN]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 1


def run_slowly_prepared(argv: list[str], rank: "int | str | None") -> int:
    """A command whose data is prepared slowly, and a signal to a rank while it is."""
    import threading
    import time

    from megaqk.corpus import build, sources

    sources.CHUNK_BYTES, real = 300, build.encode_in_order

    def encode_slowly(*args: Any, **keys: Any) -> Any:
        for item in real(*args, **keys):
            time.sleep(0.2)
            yield item

    build.encode_in_order = encode_slowly
    if int(os.environ["RANK"]) == rank:
        threading.Timer(4.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    return commands.run_command(argv)


@pytest.mark.parametrize("by", [0, 1, "stop file", "time limit"])
def test_while_data_is_prepared(
    tmp_path: Path,
    write_config: Callable[..., Path],
    undisturbed: "dict[int, float]",
    data_section: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    by: "int | str",
) -> None:
    data = {**data_section, "cache_dir": str(tmp_path / "cache")}
    config = write_config(tmp_path, data=data, training={"steps": STEPS}, evaluation={"every": AT, "batches": 1})
    argv = ["pretrain", str(config)]
    if by == "stop file":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "stop").touch()
    limited = [*argv, *(["training.time_limit=4"] if by == "time limit" else [])]
    assert run_distributed(run_slowly_prepared, WORLD, limited, by, init=False) == [AGAIN] * WORLD
    output, name = capfd.readouterr().out, by if isinstance(by, str) else "SIGTERM"
    assert output.count(f"megaqk: stopped by {name} before the first step; the same command goes on") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["stopped_by"] == name
    assert not (tmp_path / "run" / "stop").exists()
    assert list((tmp_path / "cache").glob("*/corpus.bin.partial"))
    assert run_distributed(run_slowly_prepared, WORLD, argv, None, init=False) == [0] * WORLD
    assert losses(tmp_path) == undisturbed
