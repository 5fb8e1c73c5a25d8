"""`megaqk evaluate` on a run of two ranks, against lm-evaluation-harness on what `megaqk export` makes of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import transformers
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaqk import cli
from megaqk.checkpoint.reader import open_checkpoint
from megaqk.evaluation.harness import what_there_is
from megaqk.evaluation.shipped_tasks import FOLDER, shipped_names
from megaqk.exchange.export import export
from tests.distributed import commands
from tests.harness import run_distributed

LIMIT = 16


@pytest.fixture(scope="module")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, data_section: dict[str, Any], write_config: Callable[..., Path]
) -> Path:
    """A run with checkpoints of two steps."""
    config = write_config(
        tmp_path_factory.mktemp("evaluate"),
        parallel={"tensor": 2},
        training={"steps": 4, "sequence_length": 160},
        checkpoint={"every": 2, "keep": 2},
        evaluation={"batches": 0},
    )
    assert run_distributed(commands.run_command, 2, ["pretrain", str(config)], init=False, timeout=120) == [0, 0]
    return config.parent / "run"


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Path:
    export(open_checkpoint(run_dir), run_dir.parent / "hf")
    return run_dir.parent / "hf"


def evaluate(*words: object) -> int:
    return cli.main(["evaluate", *map(str, words), "--device", "cpu"])


def values(tasks: dict[str, Any]) -> dict[str, float]:
    """By task and metric, from a file of ours."""
    return {
        f"{task}/{metric}": one["value"] for task, result in tasks.items() for metric, one in result["metrics"].items()
    }


def theirs(results: dict[str, Any]) -> dict[str, float]:
    """The same from the harness."""
    return {
        f"{task}/{key.removesuffix(',none')}": value
        for task, result in results.items()
        for key, value in result.items()
        if key.endswith(",none") and "stderr" not in key
    }


def test_all_tasks_are_as_the_harness_has_them(run_dir: Path, exported: Path, tmp_path: Path) -> None:
    for model in (run_dir, exported):
        assert evaluate(model, "--tasks", "megaqk", "--limit", LIMIT, "--output", tmp_path / model.name) == 0
    mine, again = (json.loads((tmp_path / name).read_text())["tasks"] for name in (run_dir.name, exported.name))
    lm = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=16)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    found = simple_evaluate(model=lm, tasks=["megaqk"], task_manager=manager, limit=LIMIT, bootstrap_iters=1000)
    assert values(mine) == values(again) == theirs(found["results"])
    assert mine.keys() == set(shipped_names()) - {"megaqk"}
    assert len(values(mine)) == 9
    for task, result in mine.items():
        assert (result["n"], result["limit"], result["version"]) == (LIMIT, LIMIT, 1)
        assert result["versions"]["lm_eval"] == "0.4.13"
        for metric, one in result["metrics"].items():
            assert one["stderr"] == found["results"][task][f"{metric}_stderr,none"]


@pytest.mark.full
def test_the_harness_own_command_line(exported: Path, tmp_path: Path) -> None:
    output, tasks = tmp_path / "mine.json", "megaqk_induction,megaqk_last_word,megaqk_reflexive"
    assert evaluate(exported, "--tasks", tasks, "--limit", LIMIT, "--output", output) == 0
    arguments = f"pretrained={exported},dtype=float32"
    words = ["--model", "hf", "--model_args", arguments, "--tasks", tasks, "--include_path", str(FOLDER)]
    words += ["--limit", str(LIMIT), "--batch_size", "16", "--device", "cpu", "--output_path", str(tmp_path / "theirs")]
    subprocess.run([sys.executable, "-m", "lm_eval", *words], check=True, timeout=280, capture_output=True)
    [path] = (tmp_path / "theirs").rglob("results_*.json")
    assert values(json.loads(output.read_text())["tasks"]) == theirs(json.loads(path.read_text())["results"])


def points(run_dir: Path) -> dict[str, dict[int, float]]:
    reader = EventAccumulator(str(run_dir / "tensorboard" / "evaluations"))
    reader.Reload()
    return {tag: {one.step: one.value for one in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}


def test_every_checkpoint_of_a_run(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    step2, step4 = (run_dir / "checkpoints" / f"step-{step}" for step in (2, 4))
    reflexive, both = ["--tasks", "megaqk_reflexive"], ["--tasks", "megaqk_reflexive,megaqk_agreement"]
    assert evaluate(run_dir, *reflexive, "--limit", 8) == 0
    assert str(step4) in capsys.readouterr().out
    assert points(run_dir).keys() == {"megaqk_reflexive/acc"}

    assert evaluate("--all", run_dir, *reflexive, "--limit", 8) == 0
    said = capsys.readouterr().out
    assert f"{step4}: is evaluated\n" in said
    assert f"written to {run_dir / 'evaluations' / 'step-2.json'}\n" in said
    # Another task is added to what is there, another limit replaces it.
    assert evaluate("--all", run_dir, *both, "--limit", 8) == 0
    found = {step: json.loads((run_dir / "evaluations" / f"step-{step}.json").read_text()) for step in (2, 4)}
    assert [(one["step"], one["model"], list(one["tasks"])) for one in found.values()] == [
        (step, str(path), ["megaqk_reflexive", "megaqk_agreement"]) for step, path in ((2, step2), (4, step4))
    ]
    capsys.readouterr()
    assert evaluate("--all", run_dir, *reflexive, "--limit", 4) == 0
    assert "is evaluated" not in capsys.readouterr().out

    curves = points(run_dir)
    assert curves.keys() == {"megaqk_reflexive/acc", "megaqk_agreement/acc"}
    for step in (2, 4):
        tasks = json.loads((run_dir / "evaluations" / f"step-{step}.json").read_text())["tasks"]
        assert tasks["megaqk_reflexive"]["n"] == 4
        assert {tag: curve[step] for tag, curve in curves.items()} == pytest.approx(values(tasks))


def test_random_weights_are_at_chance(exported: Path, tmp_path: Path) -> None:
    folder, n = shutil.copytree(exported, tmp_path / "hf"), 100
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.set_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    output = tmp_path / "output"
    assert evaluate(folder, "--tasks", "megaqk", "--limit", n, "--batch-size", 64, "--output", output) == 0
    for task, result in json.loads(output.read_text())["tasks"].items():
        chance = result["metrics"]["acc"]["chance"]
        assert chance == {"last_word": 0, "last_word_choice": 0.25, "induction": 0.25, "copying": 0.25}.get(
            task.removeprefix("megaqk_"), 0.5
        )
        assert abs(result["metrics"]["acc"]["value"] - chance) <= 3.3 * sqrt(chance * (1 - chance) / n), task


def test_the_file_of_a_task(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the harness's own format; chance is what guessing among its choices reaches."""
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"q": "the", "choices": [" cat"] * n, "a": 0}) + "\n" for n in (2, 4))
    )
    (tmp_path / "task.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: choices\ndoc_to_target: a\n"
    )
    assert evaluate(exported, "--tasks", f"{tmp_path / 'task.yaml'}", "--output", tmp_path / "o") == 0
    result = json.loads((tmp_path / "o").read_text())["tasks"]["mine"]
    assert result["metrics"]["acc"] == {"value": 1.0, "stderr": 0.0, "chance": 0.375}

    (tmp_path / "data.jsonl").unlink()
    assert evaluate(exported, "--tasks", f"{tmp_path / 'task.yaml'}") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"megaqk: error: --tasks = {tmp_path / 'task.yaml'}: cannot be loaded (")
    assert said.count("\n") == 1


NO_NETWORK = """
import os, socket, sys
def refuse(*_): os._exit(99)
socket.getaddrinfo = socket.socket.connect = refuse
from megaqk.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_nothing_is_looked_up(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that could be the name of a model on the hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(exported, tmp_path / "openai" / "gpt")
    words = ["evaluate", "openai/gpt", "--tasks", "megaqk_last_word", "--limit", "4", "--device", "cpu"]
    command = [sys.executable, "-c", NO_NETWORK, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    cut = "megaqk: 3 requests are longer than the model's context of 160 tokens: their beginning is cut\n"
    assert (done.returncode, done.stderr) == (0, cut)
    first, titles, *lines = done.stdout.splitlines()
    assert (first, titles.split()[:4]) == ("openai/gpt", ["task", "metric", "value", "error"])
    assert sorted(line.split()[1] for line in lines) == ["acc", "perplexity"]


def test_without_the_extra(exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("megaqk.evaluation.evaluating", "megaqk.evaluation.harness"):
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert evaluate(exported, "--tasks", "megaqk") == 2
    line = "megaqk evaluate: needs lm_eval, which is not installed: pip install 'megaqk[eval]'"
    assert capsys.readouterr().err == f"megaqk: error: {line}\n"


def test_a_task_that_is_named_twice(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(exported, "--tasks", "megaqk_copying,megaqk") == 2
    line = "--tasks = megaqk: must not have megaqk_copying, which megaqk_copying has too"
    assert capsys.readouterr().err == f"megaqk: error: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--tasks", "megaqk"], "megaqk evaluate: nothing to evaluate: must have a MODEL or --all RUN_DIR"),
        (["DIR", "--tasks", ","], "--tasks = ,: must name at least one of megaqk, megaqk_agreement, "),
        (["DIR", "--tasks", "megaqk", "--limit", "0"], "--limit = 0: must be at least 1"),
        (["DIR", "--tasks", "megaqk", "--batch-size", "0"], "--batch-size = 0: must be at least 1"),
        (["DIR", "DIR", "--tasks", "megaqk", "--output", "o"], "--output = o: must be for exactly one MODEL"),
        (["DIR", "--tasks", "megaqk"], "DIR: must be a checkpoint"),
        (["--all", "DIR", "--tasks", "megaqk"], "--all = DIR: must be a run.dir with a checkpoint"),
    ],
)
def test_what_a_user_can_cause(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    assert evaluate(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"megaqk: error: {line}")
    assert said.count("\n") == 1


def test_a_task_that_there_is_not() -> None:
    line = what_there_is("megaqk_inductoin", [*shipped_names(), "arc_easy"])
    assert line.startswith("must be one of megaqk, megaqk_agreement, ")
    assert ", one of 1 of lm-evaluation-harness (lm_eval ls tasks), or the file of a task; near it: megaqk_ind" in line


@pytest.mark.full  # the harness's own tasks take half a minute to list
def test_a_task_that_the_harness_does_not_have(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(exported, "--tasks", "megaqk,hellaswg") == 2
    said = capsys.readouterr().err
    assert said.startswith("megaqk: error: --tasks = hellaswg: must be one of megaqk, megaqk_agreement, ")
    assert "near it: hellaswag" in said
    assert said.count("\n") == 1
