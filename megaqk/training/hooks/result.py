"""`result.json`: what became of a run, for whatever reads many of them."""

import platform
import time
from datetime import datetime, timezone
from typing import Any

import deepspeed
import torch

from megaqk import __version__
from megaqk.training.trainer import Hook, Record, Trainer


class ResultFile(Hook):
    """Keeps `result.json` true: `running` from the start, with the newest losses at each save, then `finished`.

    It has state, step, steps, loss, valid_loss (null where unknown), test_loss, test_perplexity and test_bits_per_byte
    where the test part has been evaluated, tokens, seconds (of this start), started (UTC),
    versions, topology and last_words. How a run failed is put in by `RunFolder.note_failure`.
    """

    def __init__(self) -> None:
        self._losses: dict[str, Any] = {"loss": None, "valid_loss": None}
        self._began = time.monotonic()
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def start(self, run: Trainer) -> None:
        """Note that the run is on."""
        self._write(run, "running")

    def record(self, run: Trainer, record: Record) -> None:
        """Take over the newest losses; they are written with the next save, or with what ends the run."""
        taken = (name for name in record if name in ("loss", "valid_loss") or name.startswith("test_"))
        self._losses.update({name: record[name] for name in taken})
        run.folder.result = self._content(run, "running")

    def saving(self, run: Trainer) -> None:
        """Bring the file up to date."""
        self._write(run, "running")

    def end(self, run: Trainer) -> None:
        """Note that the run is finished."""
        self._write(run, "finished")

    def _write(self, run: Trainer, state: str) -> None:
        if run.world.rank == 0:
            run.folder.write_result(self._content(run, state))

    def _content(self, run: Trainer, state: str) -> dict[str, Any]:
        versions = {"megaqk": __version__, "torch": torch.__version__, "deepspeed": deepspeed.__version__}
        return {
            "state": state,
            "step": run.progress.step,
            "steps": run.config.training.steps,
            **self._losses,
            "tokens": run.progress.tokens,
            "seconds": round(time.monotonic() - self._began, 3),
            "started": self._started,
            "versions": {**versions, "python": platform.python_version()},
            "topology": {**run.world.sizes._asdict(), "zero_stage": run.config.parallel.zero_stage},
            "last_words": "",
        }

    def state(self) -> dict[str, Any]:
        """The losses, which a resumed run may not measure anew."""
        return dict(self._losses)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the losses back."""
        self._losses.update(state)
