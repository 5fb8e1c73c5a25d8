"""What tests ask of a training engine beyond its trace: what it resumes with, reads, and holds."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from megaqk.model.batch import Stream
from megaqk.optim.optimizers import OptimizerOwner
from tests.distributed.driver import LENGTH, STEPS, Trace, at_step, batches, micro_batches, start_engine

DATA: dict[str, Any] = {
    "sequence_length": LENGTH,
    "seed": 0,
    "separate_documents": False,
    "tokenizer": "",
    "corpora": [],
    "phases": [],
}
"""The identity of the data of the driver's runs, as checkpoints hold it."""


def save_engine(engine: Any, folder: str, step: int, *, skipped: int = 0) -> None:
    """Write a checkpoint of an engine of the driver after so many steps; every rank calls it."""
    from megaqk.training.run_checkpoints import RunCheckpoints

    checkpoints = RunCheckpoints(Path(folder), engine, DATA)
    checkpoints.save(dataclasses.replace(at_step(step), skipped=skipped), {}, None)
    checkpoints.wait()


def load_engine(engine: Any, folder: str) -> Any:
    """Load the newest checkpoint into an engine of the driver; every rank calls it."""
    from megaqk.training.run_checkpoints import RunCheckpoints

    loaded = RunCheckpoints(Path(folder), engine, DATA).load()
    assert loaded is not None
    return loaded


def changed_on_the_way(
    folder: str, before: dict[str, Any], after: dict[str, Any], at: int, owners: Sequence[OptimizerOwner] = ()
) -> Trace | None:
    """`engine_run` of one case for `at` steps, and of another from the checkpoint of the first to the end."""
    losses: list[float] = []
    norms: list[float] = []
    for case, steps in ((before, range(at)), (after, range(at, STEPS))):
        engine = start_engine(case, owners=owners)
        from tests.distributed.gathering import gather_parameters

        if steps.start:
            load_engine(engine, folder)
        for step in steps:
            engine.train_step(micro_batches(engine, batches()[step]), at_step(step))
            losses.append(float(engine.loss()))
            norms.append(engine.gradient_norm())
        if not steps.start:
            save_engine(engine, folder, at)
    weights = gather_parameters(engine)
    return None if weights is None else Trace(losses, norms, weights)


def batches_read(case: dict[str, Any]) -> tuple[int, int]:
    """How many micro-batches this rank takes from what it is handed, in a step and in an evaluation."""
    engine = start_engine(case)
    taken = 0

    def counted() -> Iterator[tuple[Stream, Tensor]]:
        nonlocal taken
        for batch in micro_batches(engine, batches()[0]):
            taken += 1
            yield batch

    engine.train_step(counted(), at_step(0))
    in_training, taken = taken, 0
    engine.evaluate(counted(), engine.world.micro_batches)
    return in_training, taken


def rotary_tables(case: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Cosines and sines (positions, head_dim / 2) of every block that the engine of a case holds on this rank."""
    engine = start_engine(case)
    from megaqk.model.positions import Rotary

    return [(module.cos, module.sin) for module in engine.module.modules() if isinstance(module, Rotary)]
