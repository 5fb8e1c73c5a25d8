"""What a run records about itself: `metrics.jsonl` and TensorBoard files that hold the same numbers.

A record is one line of JSON with `step` first and then any of

    tokens, loss, grad_norm, skipped_steps, lr/<group>, multiplier/<group>, tokens_per_second,
    model_flops_per_second, mfu, peak_memory_bytes, and the run's signals, such as qk_clip/max_logit

or, for an evaluation, `valid_loss`, `valid_perplexity` and `valid_bits_per_byte`, the same three of each validation set
as `valid/<set>/loss` and so on, and at the end of the test part as `test_loss` and so on. `skipped_steps` is how many
steps so far changed nothing, since their loss or gradient was not finite; their `tokens` count all the same. JSON has
no word for NaN and the infinities: such a value is written as null, which every reader takes for a missing number;
TensorBoard's files say which of them it was.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, SupportsFloat

from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.training.event_file import TENSORBOARD_FOLDER, EventFile

METRICS_FILE = "metrics.jsonl"

# A hundred records with dozens of groups.
_TAIL_BYTES = 1 << 16

Number = int | float | SupportsFloat

logger = logging.getLogger("megaqk")


class RecordFile:
    """A file of records, one line of JSON each.

    A resumed run goes on in the same file: what an earlier run recorded after the step it is resumed from is dropped,
    so that no step appears twice.

    Args:
        path: The file; made if it is not there, with its folder.
        resume_step: The step the run starts from.

    Raises:
        UserError: The operating system refused to write, here and in the methods: a full disk for example.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self._path = path
        with os_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(path, resume_step)
            self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record; a number in it that is not finite becomes null, in lists and mappings too."""
        line = json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
        with os_errors_named(self._path):
            # One write call for the whole line: whoever reads along never sees half of one from a living writer.
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        """Put everything on disk; called before a checkpoint, so that a run resumed from it has all records."""
        with os_errors_named(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


class MetricsWriter:
    """Writes the records of a run; in TensorBoard's files, which only ever grow, dropped ones are marked as void.

    Args:
        run_dir: `run.dir`; made if it is not there.
        resume_step: The step the run starts from; 0 drops every earlier record.
        config: The run, for TensorBoard's layout, text and table of hyper-parameters.

    Raises:
        UserError: As `RecordFile`.
    """

    def __init__(self, run_dir: Path, *, resume_step: int = 0, config: Config | None = None) -> None:
        self._records = RecordFile(run_dir / METRICS_FILE, resume_step=resume_step)
        self._events = EventFile(run_dir / TENSORBOARD_FOLDER, first_step=resume_step + 1, config=config)

    def write(self, record: Mapping[str, Number | None]) -> None:
        """Write one record.

        Args:
            record: Metric names and values, `step` among them. A value of None is not known and left out.
        """
        step = int(_plain(record["step"]))
        values = {name: _plain(value) for name, value in record.items() if name != "step" and value is not None}
        self._records.write({"step": step} | values)
        self._events.write(step, values)

    def flush(self) -> None:
        """Put everything on disk, as `RecordFile.flush`."""
        self._records.flush()
        self._events.sync()

    def finish(self) -> None:
        """Put everything on disk, for a run that has come to its end."""
        self._events.finish()
        self.flush()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for file in (self._records, self._events):
            # What a full disk refused is tried again here, and has been reported.
            with contextlib.suppress(OSError):
                file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a `metrics.jsonl`, without a last line that a killed run left unfinished.

    Raises:
        UserError: The file is not there, or a line before the last is not a record.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file; name the metrics.jsonl of a run")
    lines = _lines(path)
    for number, (line, record) in enumerate(lines, start=1):
        if record is not None:
            yield record
        elif number < len(lines):
            raise UserError(
                f"{path}: line {number} is not a record, a JSON object with a step: {line[:80]!r}; remove the line, or "
                "resume the run, which puts the damaged file aside and keeps the records"
            )


def newest_values(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The last value of some metrics at the end of a `metrics.jsonl`, of however large a file.

    Damaged lines are left out, and so is a name that none of the last records has.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - _TAIL_BYTES, 0))
        lines = stream.read().splitlines()
    found: dict[str, Any] = {}
    # The first line of a part may be the end of one.
    for line in reversed(lines[1:] if size > _TAIL_BYTES else lines):
        # Most lines have nothing new, and parsing is what takes time.
        missing = [name for name in names if name not in found and f'"{name}"'.encode() in line]
        record = _record(line) if missing else None
        found |= {name: record[name] for name in missing if record and name in record}
    return found


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Every line of a `metrics.jsonl`, with its record where it is one."""
    with os_errors_named(path):
        return [(line, _record(line)) for line in path.read_bytes().splitlines()]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # of bytes that are no UTF-8 too
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _keep_until(path: Path, step: int) -> None:
    """Remove the records after a step, and an unfinished last line, in one move that a kill cannot halve.

    A bad line further up (a disk that was full or failed) must not end a long run: the file is kept beside and goes on
    without it.
    """
    if not path.exists():
        return
    lines = _lines(path)
    bad = sum(record is None for _, record in lines[:-1])
    if bad:
        names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        with written_whole(aside) as beside:
            shutil.copyfile(path, beside)
        logger.warning(
            "%s: %d of %d lines are not records and were left out; the file as it was is %s",
            path,
            bad,
            len(lines),
            aside.name,
        )
    with written_whole(path) as beside:
        beside.write_bytes(b"".join(line + b"\n" for line, record in lines if record and record["step"] <= step))


def _plain(value: Number | None) -> int | float:
    """A Python number from whatever holds one, a tensor or a numpy scalar."""
    assert value is not None
    return value if isinstance(value, int | float) else float(value)


def _finite(value: Any) -> Any:
    """A value of a record as JSON may have it."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
