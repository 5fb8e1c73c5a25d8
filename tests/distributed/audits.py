"""What a checkpoint, or a loaded engine, is made to differ in, and what is said of it; on one rank."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megaqk.errors import UserError
from tests.distributed import driver, questions

STEP = 3


def refusals(case: dict[str, Any], folder: str) -> dict[str, str]:
    """What is said after each change to a checkpoint of an engine of the driver, by the name of the change."""
    engine = driver.start_engine(case)
    for step in range(STEP):
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
    questions.save_engine(engine, folder, STEP)
    written = Path(folder) / "checkpoints" / f"step-{STEP}"
    said = {}
    for change in (another_count, no_group, another_shape, no_tensor, one_more_tensor):
        manifest, index = (json.loads((written / name).read_text()) for name in ("manifest.json", "index.json"))
        change(manifest, index)
        said[change.__name__] = _refusal(lambda m=manifest, i=index: _audit(engine, written, m, i))
    values = json.loads((written / "manifest.json").read_text())["state"]["optimizer"]
    for spoil in (lost_moment, lost_count, swapped_groups):
        questions.load_engine(engine, folder)
        spoil(engine)
        said[spoil.__name__] = _refusal(lambda: _audit_loaded(engine, values))
    swapped_groups(engine)
    questions.load_engine(engine, folder)
    _audit_loaded(engine, values)
    return said


def another_count(manifest: dict[str, Any], index: dict[str, Any]) -> None:
    manifest["state"]["optimizer"]["upper_qk"]["step"] = STEP - 1.0


def no_group(manifest: dict[str, Any], index: dict[str, Any]) -> None:
    del manifest["state"]["optimizer"]["upper_qk"]


def another_shape(manifest: dict[str, Any], index: dict[str, Any]) -> None:
    index["tensors"]["exp_avg/final_norm.norm.weight"] = [7]


def no_tensor(manifest: dict[str, Any], index: dict[str, Any]) -> None:
    del index["tensors"]["exp_avg_sq/final_norm.norm.weight"]


def one_more_tensor(manifest: dict[str, Any], index: dict[str, Any]) -> None:
    index["tensors"]["weight/other"] = [7]


def lost_moment(engine: Any) -> None:
    from megaqk.training.fragments import base_optimizer, fragments

    fragment = list(fragments(engine.engine.optimizer))[-1]
    del base_optimizer(engine.engine.optimizer).state[fragment.master]["exp_avg"]


def swapped_groups(engine: Any) -> None:
    from megaqk.training.fragments import base_optimizer

    first, second = base_optimizer(engine.engine.optimizer).param_groups[:2]
    first["name"], second["name"] = second["name"], first["name"]


def lost_count(engine: Any) -> None:
    from megaqk.training.fragments import base_optimizer, masters

    for _, master in masters(engine.engine.optimizer):
        base_optimizer(engine.engine.optimizer).state[master]["step"] += 1


def _refusal(action: Callable[[], None]) -> str:
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def _audit(engine: Any, path: Path, manifest: dict[str, Any], index: dict[str, Any]) -> None:
    from megaqk.checkpoint.index import Index
    from megaqk.checkpoint.reader import Checkpoint
    from megaqk.training.audit import audit_checkpoint

    checkpoint = Checkpoint(path)
    checkpoint.manifest = manifest
    checkpoint.__dict__["index"] = Index({name: tuple(shape) for name, shape in index["tensors"].items()}, {})
    audit_checkpoint(checkpoint, engine)


def _audit_loaded(engine: Any, values: dict[str, Any]) -> None:
    from megaqk.training.audit import audit_loaded

    audit_loaded(engine, values)
