"""Models one after the other: what is evaluated, said and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaqk.checkpoint.reader import Checkpoint, open_checkpoint, open_step
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore
from megaqk.errors import UserError
from megaqk.evaluation.evaluations import read_results, result_file, results_table, show_in_tensorboard, write_results
from megaqk.evaluation.harness import Harness, How


def evaluate_models(models: Sequence[Path], names: Sequence[str], how: How, output: Path | None) -> None:
    """Evaluate models, print what is found, and write what is found of checkpoints.

    Args:
        models: Folders of checkpoints, runs or Hugging Face models.
        names: Of tasks.
        how: See `How`.
        output: Where to write, in place of beside the checkpoint.
    """
    found = {model: None if (model / "config.json").is_file() else open_checkpoint(model) for model in models}
    harness = Harness(names)
    for model, checkpoint in found.items():
        path = model if checkpoint is None else checkpoint.path
        tasks = harness.evaluate(path, names, how)
        if tasks is not None:
            _report(path, checkpoint, tasks, output)


def evaluate_all(run_dir: Path, names: Sequence[str], how: How) -> None:
    """Evaluate what has not been of the checkpoints of a run; see `evaluate_models`."""
    store = CheckpointStore(run_dir / "checkpoints", Retention(newest=1))
    if not (steps := store.steps()):
        raise UserError(f"--all = {run_dir}: must be a run.dir with a checkpoint")
    harness = Harness(names)
    for step in steps:
        missing = harness.missing(read_results(result_file(run_dir, step)), how.limit)
        if not missing:
            print(f"{store.path(step)}: is evaluated")
            continue
        checkpoint = open_step(store, step)
        tasks = harness.evaluate(checkpoint.path, missing, how)
        if tasks is not None:
            _report(checkpoint.path, checkpoint, tasks, None)


def _report(path: Path, checkpoint: Checkpoint | None, tasks: dict[str, Any], output: Path | None) -> None:
    print(f"{path}\n{results_table(tasks)}", flush=True)
    step: int | None = None if checkpoint is None else checkpoint.manifest["progress"]["step"]
    folder = path.resolve().parent
    if output is not None:
        write_results(output, path, step, tasks)
    elif step is not None and folder.name == "checkpoints":
        output = result_file(folder.parent, step)
        write_results(output, path, step, tasks)
        show_in_tensorboard(folder.parent)
    if output is not None:
        print(f"written to {output}")
