"""What rank 0 shows while it trains: one bar on a terminal, plain lines into a file or a pipe."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm


class ProgressDisplay:
    """Shows how far a run is, with loss, learning rate, tokens per second and the time left.

    Args:
        total_steps: Steps of the whole run.
        resume_step: The step the run starts from.
        enabled: Whether this rank shows anything.
        stream: Where to; the bar needs a terminal, anything else gets a line for every record.
    """

    def __init__(
        self, total_steps: int, *, resume_step: int = 0, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._enabled = enabled
        self._total_steps = total_steps
        self._first_step = resume_step
        self._step = resume_step
        self._began = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps, initial=resume_step, desc="step", file=self._stream, dynamic_ncols=True, leave=True
            )

    def advance(self, step: int) -> None:
        """Note that a step is done."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step

    def show(self, record: Mapping[str, Any]) -> None:
        """Show a record as it goes to `metrics.jsonl`, of training or of a validation."""
        if not self._enabled:
            return
        if "valid_loss" in record:
            self.message(
                f"step {record['step']}/{self._total_steps}  valid loss {record['valid_loss']:.4f}"
                f"  perplexity {record['valid_perplexity']:.2f}"
            )
            return
        parts = _describe(record)
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts))
            return
        left = self._seconds_left(record["step"])
        parts.append(f"left {timedelta(seconds=round(left))}" if left is not None else "left ?")
        self.message("  ".join([f"step {record['step']}/{self._total_steps}", *parts]))

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            # One write, newline included: the other ranks' warnings may share the stream.
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()

    def _seconds_left(self, step: int) -> float | None:
        done = step - self._first_step
        if done <= 0:
            return None
        return (time.monotonic() - self._began) / done * (self._total_steps - step)

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _describe(record: Mapping[str, Any]) -> list[str]:
    parts = []
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.4f}")
    # Groups differ by their multiplier, which mostly slows: the largest is the schedule itself.
    rates = [value for name, value in record.items() if name.startswith("lr/") and value is not None]
    if rates:
        parts.append(f"lr {max(rates):.2e}")
    if record.get("tokens_per_second") is not None:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    return parts
