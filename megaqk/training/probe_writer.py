"""What a run writes of its probes: `probes.jsonl`, and a run of TensorBoard's called `probes`."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megaqk.training.event_file import TENSORBOARD_FOLDER, EventFile
from megaqk.training.heat_maps import curves, heat_maps
from megaqk.training.metrics import RecordFile, read_metrics

PROBES_FILE = "probes.jsonl"


class ProbeWriter:
    """Writes the records of the probes of a run, resumed as `MetricsWriter` is.

    Args:
        run_dir: `run.dir`.
        resume_step: The step the run starts from; what was recorded after it is dropped.

    Raises:
        UserError: The operating system refused to write, here and in the methods.
    """

    def __init__(self, run_dir: Path, *, resume_step: int) -> None:
        self._path = run_dir / PROBES_FILE
        # A start is measured too: that of a run from the beginning drops the one there is.
        self._records = RecordFile(self._path, resume_step=resume_step or -1)
        # In a folder of its own: TensorBoard takes the files of one folder to follow each other.
        folder = run_dir / TENSORBOARD_FOLDER / "probes"
        self._events = EventFile(folder, first_step=resume_step + 1 if resume_step else 0, config=None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record, `step` among its names."""
        self._records.write(record)
        self._events.write(record["step"], curves(record))

    def draw(self) -> None:
        """Add pictures of all records so far, at the step of the last."""
        records = list(read_metrics(self._path))
        for tag, png in heat_maps(records).items():
            self._events.write_picture(records[-1]["step"], tag, png)

    def flush(self) -> None:
        """Put everything on disk, before a checkpoint that vouches for it."""
        self._records.flush()
        self._events.sync()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for file in (self._records, self._events):
            # What a full disk refused is tried again here, and has been reported.
            with contextlib.suppress(OSError):
                file.close()
