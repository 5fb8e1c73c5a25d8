"""What evaluations have found, beside the checkpoints of a run, and in TensorBoard."""

import json
from collections.abc import Mapping
from contextlib import suppress
from math import sqrt
from pathlib import Path
from typing import Any

from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.runtime.text_table import table
from megaqk.training.event_file import TENSORBOARD_FOLDER, EventFile

FOLDER = "evaluations"
"""In the folder of a run: a file for each step. Below its folder for TensorBoard: a run of this name."""


def result_file(run_dir: Path, step: int) -> Path:
    """Where the results of a step are."""
    return run_dir / FOLDER / f"step-{step}.json"


def read_results(path: Path) -> dict[str, Any]:
    """Results by task; none where there is no file, or one that is none."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text(encoding="utf-8"))["tasks"])
    return {}


def write_results(path: Path, model: Path, step: int | None, tasks: Mapping[str, Any]) -> None:
    """Write results, whole or not at all; those of other tasks that are there stay.

    Args:
        path: Where to.
        model: What was evaluated.
        step: Of which step it is, None for what is no checkpoint of ours.
        tasks: Results by task.
    """
    content = {"model": str(model), "step": step, "tasks": {**read_results(path), **tasks}}
    with os_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def show_in_tensorboard(run_dir: Path) -> None:
    """Write the results of all steps of a run for TensorBoard, in place of what was there."""
    steps = {int(path.stem.removeprefix("step-")): path for path in (run_dir / FOLDER).glob("step-*.json")}
    folder = run_dir / TENSORBOARD_FOLDER / FOLDER
    before = list(folder.glob("events.out.tfevents.*"))
    events = EventFile(folder, first_step=0, config=None)
    for step, path in sorted(steps.items()):
        points = {
            f"{task}/{metric}": one["value"]
            for task, result in read_results(path).items()
            for metric, one in result["metrics"].items()
            if one["value"] is not None
        }
        events.write(step, points)
    events.close()
    for path in before:
        path.unlink()


def results_table(tasks: Mapping[str, Any]) -> str:
    """Results for a terminal."""
    rows = [("task", "metric", "value", "error", "chance", "above chance", "items")]
    for task, result in tasks.items():
        for metric, one in result["metrics"].items():
            cells = (f"{one[name]:.4f}" if one[name] is not None else "-" for name in ("value", "stderr", "chance"))
            rows.append((task, metric, *cells, _above(one, result["n"]), f"{result['n']}"))
    return table(rows)


def _above(one: Mapping[str, float | None], n: int) -> str:
    """By how many standard errors of guessing a value is above chance."""
    value, chance = one["value"], one["chance"]
    if value is None or not chance:
        return "-"
    return f"{(value - chance) / sqrt(chance * (1 - chance) / n):+.1f} sigma"
