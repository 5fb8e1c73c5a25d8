"""A run's file for TensorBoard."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megaqk.config.root import Config
from megaqk.runtime.files import os_errors_named

TENSORBOARD_FOLDER = "tensorboard"


class EventFile:
    """A file for TensorBoard, which takes all files of a folder, in the order of their names, for one run.

    Not torch's SummaryWriter: that one writes in a thread, where a full disk is a traceback on the terminal first and
    an error without a file name at some later step.

    Args:
        folder: Where the files are; made if it is not there.
        first_step: The step from which on older files in the folder are void.
        config: What the dashboards show beside the curves; see `dashboards`.
    """

    def __init__(self, folder: Path, *, first_step: int, config: Config | None) -> None:
        # A quarter of a second to import, and only one rank needs it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        from megaqk.training import dashboards

        self._event, self._summary = Event, Summary
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._step, self._tags = 0, set[str]()
        with os_errors_named(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))
        if config is not None:
            # At the first step, so that a start from an earlier one voids them like any other point.
            for summary in dashboards.opening(config):
                self._add(step=first_step, summary=summary)

    def write(self, step: int, values: Mapping[str, int | float]) -> None:
        """Add points; of a value that a step has in two records, TensorBoard gets the first."""
        if step != self._step:
            self._step, self._tags = step, set()
        new = {tag: value for tag, value in values.items() if tag not in self._tags}
        self._tags |= new.keys()
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in new.items()]
        self._add(step=step, summary=self._summary(value=points))

    def write_picture(self, step: int, tag: str, png: bytes) -> None:
        """Add a picture, an encoded PNG."""
        width, height = struct.unpack(">II", png[16:24])  # of its header
        image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, image=image)]))

    def _add(self, **fields: Any) -> None:
        with os_errors_named(self._path):
            self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._file.flush()

    def finish(self) -> None:
        """Note that the run has come to its end."""
        from megaqk.training import dashboards

        self._add(step=self._step, summary=dashboards.closing())

    def sync(self) -> None:
        """Put what was written on disk."""
        with os_errors_named(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
