"""What a run records about itself: `metrics.jsonl` and TensorBoard files that hold the same numbers.

A record is one line of JSON with `step` first and then any of

    tokens, loss, grad_norm, lr/<group>, multiplier/<group>, tokens_per_second, model_flops_per_second, mfu,
    peak_memory_bytes

or, for a validation, `valid_loss` and `valid_perplexity`. JSON has no word for NaN and the infinities: such a value is
written as null, which every reader takes for a missing number; TensorBoard's files say which of them it was.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat, TextIO

from megaqk.errors import UserError

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
# TensorBoard writes in the background; this is how old its view of a running training may be.
_FLUSH_SECONDS = 10

Number = int | float | SupportsFloat


class MetricsWriter:
    """Writes the records of a run, or nothing at all on ranks other than the first.

    A resumed run goes on in the same files. What an earlier run recorded after the step it is resumed from is
    dropped, so that no step appears twice; in TensorBoard's files, which only ever grow, it is marked as void.

    Args:
        run_dir: `run.dir`; made if it is not there.
        resume_step: The step the run starts from; 0 drops every earlier record.
        enabled: Whether this rank writes.
    """

    def __init__(self, run_dir: Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        self._file: TextIO | None = None
        self._tensorboard: Any = None  # A SummaryWriter, which has no usable types.
        if not enabled:
            return
        # It costs a second to import, and only one rank needs it.
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        _drop_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        folder = run_dir / TENSORBOARD_FOLDER
        purge_step = resume_step + 1 if folder.exists() else None
        self._tensorboard = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=_FLUSH_SECONDS)

    def write(self, record: Mapping[str, Number | None]) -> None:
        """Write one record.

        Args:
            record: Metric names and values, `step` among them. A value of None is not known and left out.
        """
        if self._file is None:
            return
        step = int(_plain(record["step"]))
        values = {name: _plain(value) for name, value in record.items() if name != "step" and value is not None}
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        # One write call for the whole line: whoever reads along never sees half of one from a living writer.
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self._write_event(self._tensorboard, step, values)

    @staticmethod
    def _write_event(tensorboard: Any, step: int, values: Mapping[str, int | float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event with many values is several times cheaper than as many calls of add_scalar.
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        tensorboard.file_writer.add_summary(summary, step)

    def flush(self) -> None:
        """Put everything on disk; called before a checkpoint, so that a run resumed from it has all records."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._tensorboard.flush()

    def close(self) -> None:
        """Write what is left and close the files; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()
        self._file = self._tensorboard = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a `metrics.jsonl`, without a last line that a killed run left unfinished.

    Raises:
        UserError: The file is not there, or a line before the last is not a record.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file; name the metrics.jsonl of a run")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return
            raise UserError(
                f"{path}: line {number} is not a record, a JSON object with a step: {line[:80]!r}"
            ) from None
        assert isinstance(step, int)
        yield record


def _drop_after(path: Path, step: int) -> None:
    """Remove the records after a step, and an unfinished last line, in one move that a kill cannot halve."""
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step]
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(kept)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _plain(value: Number | None) -> int | float:
    """A Python number from whatever holds one, a tensor or a numpy scalar."""
    assert value is not None
    return value if isinstance(value, int | float) else float(value)
