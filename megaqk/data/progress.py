"""How far a preparation is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

_LINE_EVERY_SECONDS = 10.0


class Progress:
    """Tokens, tokens/s and time left, on stderr, of one process; the others construct it with `shown` off."""

    def __init__(self, label: str, *, shown: bool) -> None:
        self._label = label
        self._begun = self._last = time.monotonic()
        self._done_before: float | None = None
        self._lines = shown and not sys.stderr.isatty()
        self._bar = tqdm(
            total=1.0,
            disable=not shown or self._lines,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
            desc=label,
        )

    def update(self, tokens: int, fraction: float) -> None:
        """Show the tokens made since the start and the share of the input read, in [0, 1]; 0 where unknown."""
        now = time.monotonic()
        rate = tokens / max(now - self._begun, 1e-9)
        if self._done_before is None:
            # What an earlier, interrupted run has done says nothing about this run's speed.
            self._done_before = self._bar.initial = fraction
        self._bar.n = fraction
        self._bar.set_postfix_str(f"{tokens / 1e6:.1f}M tokens, {rate / 1e6:.2f}M tokens/s")
        if self._lines and now - self._last >= _LINE_EVERY_SECONDS:
            self._last = now
            gained = fraction - self._done_before
            left = f", {(1 - fraction) / gained * (now - self._begun):.0f} s left" if gained > 0 else ""
            print(
                f"{self._label}: {fraction:.0%}, {tokens / 1e6:.1f}M tokens, {rate / 1e6:.2f}M tokens/s{left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal in order."""
        self._bar.close()
