"""How far a preparation is: one line that renews itself on a terminal, a new line now and then elsewhere."""

import sys
import time
from collections.abc import Sequence


class ProgressLine:
    """Tokens, tokens/s and time left, on stderr, of one process; the others construct it with `shown` off."""

    def __init__(self, label: str, *, shown: bool) -> None:
        self._label = label
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._begun = self._last = time.monotonic()
        self._done_before: float | None = None

    def update(self, tokens: int, shares: Sequence[float | None]) -> None:
        """Show the tokens made since the start and how much of each input is read, in [0, 1]; None where unknown."""
        now = time.monotonic()
        known = [share for share in shares if share is not None]
        fraction = sum(known) / len(known) if known and len(known) == len(shares) else None
        if self._done_before is None:
            # What an earlier, interrupted run has done says nothing about this run's speed.
            self._done_before = fraction
        if not self._shown or now - self._last < self._every:
            return
        self._last = now
        seconds = max(now - self._begun, 1e-9)
        parts = [f"{tokens / 1e6:.1f}M tokens", f"{tokens / seconds / 1e6:.2f}M tokens/s"]
        if fraction is not None:
            parts.insert(0, f"{fraction:.0%}")
            if fraction > (self._done_before or 0.0):
                parts.append(f"{(1 - fraction) / (fraction - (self._done_before or 0.0)) * seconds:.0f} s left")
        start, end = ("\r", "\033[K") if self._terminal else ("", "\n")
        sys.stderr.write(f"{start}{self._label}: {', '.join(parts)}{end}")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._shown and self._terminal:
            sys.stderr.write("\r\033[K")
