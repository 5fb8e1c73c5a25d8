"""How far a preparation is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

_LINE_EVERY_SECONDS = 10.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"
_BAR_OF_UNKNOWN_SIZE = "{desc}{postfix}"


class Progress:
    """Tokens, tokens/s and time left, on stderr, of one process; the others construct it with `shown` off."""

    def __init__(self, label: str, *, shown: bool) -> None:
        self._label = label
        self._begun = self._last = time.monotonic()
        self._done_before: float | None = None
        self._lines = shown and not sys.stderr.isatty()
        self._bar = tqdm(total=1.0, disable=not shown or self._lines, bar_format=_BAR_OF_UNKNOWN_SIZE, desc=label)

    def update(self, tokens: int, fraction: float | None) -> None:
        """Show the tokens made since the start and the share of the input read, in [0, 1]; None where unknown."""
        now = time.monotonic()
        rate = tokens / max(now - self._begun, 1e-9)
        counts = f"{tokens / 1e6:.1f}M tokens, {rate / 1e6:.2f}M tokens/s"
        if self._done_before is None and fraction is not None:
            # What an earlier, interrupted run has done says nothing about this run's speed.
            self._done_before = self._bar.initial = fraction
        self._bar.bar_format = _BAR_OF_UNKNOWN_SIZE if fraction is None else _BAR
        self._bar.n = fraction or 0.0
        self._bar.set_postfix_str(counts)
        if self._lines and now - self._last >= _LINE_EVERY_SECONDS:
            self._last = now
            sys.stderr.write(f"{self._label}: {self._share(fraction)}{counts}{self._left(fraction, now)}\n")
            sys.stderr.flush()

    @staticmethod
    def _share(fraction: float | None) -> str:
        return "" if fraction is None else f"{fraction:.0%}, "

    def _left(self, fraction: float | None, now: float) -> str:
        if fraction is None or self._done_before is None or fraction <= self._done_before:
            return ""
        return f", {(1 - fraction) / (fraction - self._done_before) * (now - self._begun):.0f} s left"

    def close(self) -> None:
        """Leave the terminal in order."""
        self._bar.close()
