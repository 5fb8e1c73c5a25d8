"""What rank 0 shows while it trains: one bar on a terminal, plain lines into a file or a pipe."""

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from megaqk.runtime.logs import STEPS
from megaqk.training.trainer import Hook, Record, Step, Trainer


class Display(Hook):
    """How far a run is, with loss, learning rate, tokens per second and the time left."""

    _bar: "tqdm[Any] | None" = None

    def start(self, run: Trainer) -> None:
        """Begin to count; the bar needs a terminal."""
        self._log = logging.getLogger(STEPS)
        self._total, self._first = run.config.training.steps, run.progress.step
        self._began = time.monotonic()
        if run.world.rank == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._first, desc="step", dynamic_ncols=True, leave=True)

    def step(self, run: Trainer, step: Step) -> None:
        """Move the bar."""
        del run, step
        if self._bar is not None:
            self._bar.update()

    def went_back(self, run: Trainer) -> None:
        """Move the bar back."""
        if self._bar is not None:
            self._bar.n = run.progress.step
            self._bar.refresh()

    def record(self, run: Trainer, record: Record) -> None:
        """Show a record, of training or of a validation; ranks other than the first have no line in their logs."""
        if run.world.rank:
            return
        where = f"step {record['step']}/{self._total}"
        evaluated = [name.removesuffix("perplexity") for name in record if name.endswith("perplexity")]
        for text in evaluated:
            line = (
                f"{where}  {text[:-1]} loss {record[f'{text}loss']:.4f}  perplexity {record[f'{text}perplexity']:.2f}"
            )
            if (bits := record.get(f"{text}bits_per_byte")) is not None:
                line += f"  bits per byte {bits:.4f}"
            # Beside the bar, which has no room for it.
            (run.log if self._bar is not None else self._log).info("%s", line)
        if evaluated:
            return
        parts = _describe(record)
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts))
        left = self._seconds_left(record["step"])
        parts.append(f"left {timedelta(seconds=round(left))}" if left is not None else "left ?")
        self._log.info("%s", "  ".join([where, *parts]))

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()

    def _seconds_left(self, step: int) -> float | None:
        done = step - self._first
        return (time.monotonic() - self._began) / done * (self._total - step) if done > 0 else None


def _describe(record: Record) -> list[str]:
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
