"""The checkpoints of one run: where they are, what goes into one beside its tensors, and going on from one."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore
from megaqk.training.compatibility import identity
from megaqk.training.engine import TrainingEngine
from megaqk.training.progress import Progress
from megaqk.training.resuming import Loaded, load_newest
from megaqk.training.saver import CheckpointSaver


class RunCheckpoints(CheckpointSaver):
    """Saves and loads a run; every rank calls it alike.

    Args:
        run_dir: The folder of the run.
        engine: What is saved and loaded.
        data: The `data_identity` of the run.
    """

    def __init__(self, run_dir: Path, engine: TrainingEngine, data: dict[str, Any]) -> None:
        keep = engine.config.checkpoint
        retention = Retention(newest=keep.keep, every=keep.keep_every, best=keep.keep_best)
        super().__init__(CheckpointStore(run_dir / "checkpoints", retention), engine)
        self._config, self._data = engine.config.model_dump(mode="json"), data

    def load(self, before: int | None = None) -> Loaded | None:
        """Load the newest that is whole, of a step `before` one if that is given; see `load_newest`."""
        self.wait()
        loaded = load_newest(self.store, self.engine, config=self._config, data=self._data, before=before)
        if loaded is not None:
            self.engine.rates.load_state(loaded.state["multipliers"])
        return loaded

    def go_back(self, before: int) -> Loaded | None:
        """Load the newest whole one of a step before that given; those that are left behind are set aside."""
        self.wait()

        def set_aside() -> None:
            for step in self.store.steps():
                if step >= before:
                    self.store.set_aside(step)

        self.engine.world.first_does(set_aside)
        return self.load(before)

    def save(self, progress: Progress, hooks: Mapping[str, dict[str, Any]], valid_loss: float | None) -> None:
        """Begin to write a checkpoint, once the one before it is written.

        Args:
            progress: Where the run is.
            hooks: What hooks keep, by name.
            valid_loss: Measured at this step; None if it has not been.
        """
        self.begin(
            {
                "progress": asdict(progress),
                "config": self._config,
                "identity": identity(self.engine),
                "data": self._data,
                "state": {
                    "hooks": {name: state for name, state in hooks.items() if state},
                    "multipliers": self.engine.rates.state(),
                },
                "valid_loss": valid_loss,
            }
        )
