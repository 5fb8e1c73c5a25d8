"""Records into `metrics.jsonl` and TensorBoard's files."""

import os
import sys
from pathlib import Path

from megaqk.training.metrics import MetricsWriter
from megaqk.training.trainer import Hook, Record, Trainer


class Recording(Hook):
    """Writes what is recorded, on rank 0."""

    _writer: MetricsWriter | None = None

    def start(self, run: Trainer) -> None:
        """Open the files where the checkpoint left them."""
        if run.world.rank == 0:
            self._writer = MetricsWriter(run.run_dir, resume_step=run.progress.step, config=run.config)

    def went_back(self, run: Trainer) -> None:
        """Drop what was recorded since."""
        self.close()
        self.start(run)

    def record(self, run: Trainer, record: Record) -> None:
        """Write a record."""
        del run
        if self._writer is not None:
            self._writer.write(record)

    def saving(self, run: Trainer) -> None:
        """Put everything on disk: a run resumed from the checkpoint has all records before it."""
        del run
        if self._writer is not None:
            self._writer.flush()

    def end(self, run: Trainer) -> None:
        """Say what can be done with it now, by the command beside this Python, which may not be on the path."""
        if self._writer is not None:
            self._writer.finish()
        beside = Path(sys.executable).with_name("megaqk")
        program = os.path.relpath(beside) if beside.exists() else "megaqk"
        run.log.info("TensorBoard: %s tensorboard %s", program, run.run_dir)
        run.log.info('continue a sentence: %s generate %s --prompt "It was"', program, run.run_dir)
        run.log.info("evaluate it: %s evaluate %s --tasks megaqk", program, run.run_dir)

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
