"""How a run stands, from its own files, whatever state they are in."""

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaqk.runtime.locks import DEAD_SECONDS
from megaqk.training.metrics import METRICS_FILE, newest_values
from megaqk.training.run_folder import OWNER_FILE, RESULT_FILE

# The clocks of machines differ.
_PATIENCE = 3


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run; what its files do not tell is None.

    Attributes:
        run: Its folder.
        state: As in `result.json`; `starting` before there is one, `damaged` where it is none, and `killed` where a
            run that says it is running gives no sign of life.
        step: The newest one that is recorded.
        steps: Of the whole run.
        loss: Of the newest record that has one.
        valid_loss: Likewise.
        tokens_per_second: Likewise.
        seconds_left: Of training, at that speed, for a run that is on.
        news_seconds: Since it last wrote a record or its result.
        host: The machine that it was last started on.
        last_words: What ended it.
    """

    run: str
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    valid_loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    news_seconds: float | None
    host: str | None
    last_words: str


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs at and below a folder, in order; inside a run and in hidden folders there is none."""
    for path, folders, files in os.walk(folder):
        if not {RESULT_FILE, METRICS_FILE, OWNER_FILE}.isdisjoint(files):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def summarise(run_dir: Path, name: str) -> RunSummary:
    """How a run stands.

    Args:
        run_dir: Its folder.
        name: What to call it.
    """
    result = _result(run_dir / RESULT_FILE)
    newest: dict[str, Any] = {}
    with suppress(OSError):
        names = ("step", "tokens", "loss", "valid_loss", "tokens_per_second")
        newest = newest_values(run_dir / METRICS_FILE, names)
    state = str(result.get("state", "damaged"))
    host = _host(run_dir)
    if state in ("running", "starting") and _is_dead(run_dir / ".lock", mine=host == socket.gethostname()):
        state = "killed"
    recorded, written = _number(newest, "step"), _number(result, "step")
    step = written if recorded is None else max(recorded, written or 0)
    steps, tokens, speed = _number(result, "steps"), _number(newest, "tokens"), _number(newest, "tokens_per_second")
    left = None
    if state == "running" and steps and step and recorded and tokens and speed:
        left = (steps - step) * tokens / recorded / speed
    return RunSummary(
        run=name,
        state=state,
        step=None if step is None else int(step),
        steps=None if steps is None else int(steps),
        loss=_number({**result, **newest}, "loss"),
        valid_loss=_number({**result, **newest}, "valid_loss"),
        tokens_per_second=speed,
        seconds_left=left,
        news_seconds=_news_seconds(run_dir),
        host=host,
        last_words=" ".join(str(result.get("last_words", "")).split()),
    )


def _result(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {"state": "starting"}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    return value if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) else None


def _news_seconds(run_dir: Path) -> float | None:
    times = []
    for name in (METRICS_FILE, RESULT_FILE):
        with suppress(OSError):
            times.append((run_dir / name).stat().st_mtime)
    return max(time.time() - max(times), 0.0) if times else None


def _host(run_dir: Path) -> str | None:
    with suppress(OSError, ValueError):
        return (run_dir / OWNER_FILE).read_text().partition(",")[0] or None
    return None


def _is_dead(lock: Path, *, mine: bool) -> bool:
    """Whether nobody holds the lock of a run, as far as that can be told from this machine; who runs has its files."""
    try:
        if not mine:
            # Kernels may keep their locks to themselves; the sign of life beside it is for all.
            return time.time() - lock.with_name(f"{lock.name}.alive").stat().st_mtime > _PATIENCE * DEAD_SECONDS
        # Shared, for a moment, and never made: a look must not keep anybody out.
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
