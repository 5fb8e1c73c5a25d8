"""How fast a run learns, whatever it does besides."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class SpeedMeter:
    """Tokens a second between two readings; what is done `aside` (evaluating, saving) does not count."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._since = time.perf_counter()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stop the clock for a block; read a loss before it, or the device's unfinished steps count as aside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def read(self, tokens: int) -> float:
        """Tokens a second since the last reading, and begin anew.

        Args:
            tokens: Tokens learned from so far.
        """
        now = time.perf_counter()
        rate = (tokens - self._tokens) / max(now - self._since, 1e-9)
        self._tokens, self._since = tokens, now
        return rate
