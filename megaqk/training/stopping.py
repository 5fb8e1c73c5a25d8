"""Whether a run is to stop before its end, which all ranks learn after the same step."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from megaqk.errors import StoppedError
from megaqk.parallel.world import World
from megaqk.runtime import signals
from megaqk.training.run_folder import RunFolder

_LOOK_SECONDS = 1.0
_RANKS = 1 << 32


class StopRequests:
    """What asks a run to stop: a signal to any rank, the stop file, the time limit.

    Ranks tell each other after each step and listen after the next, so that no step waits for it: a request is met
    after the step that is being computed, or the one after it.

    Args:
        world: The processes.
        folder: Where a stop file may appear.
        began: When the run was started, by `time.monotonic`; None: now.
        limit: Seconds from then.
    """

    def __init__(self, world: World, folder: RunFolder, began: float | None, limit: float | None) -> None:
        self._world, self._folder = world, folder
        self._deadline = (time.monotonic() if began is None else began) + (float("inf") if limit is None else limit)
        self._looked, self._file_seen = 0.0, False
        self._told: tuple[torch.Tensor, Any] | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """A long block without steps: a thread of the first rank looks for what is no signal."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_SECONDS):
                if number := self._mine():
                    signals.request(number)
                    return

        if self._world.rank == 0:
            threading.Thread(target=look, name="stop requests", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def before_the_first_step(self) -> None:
        """Heed a signal that came while the run was set up, or a stop file that was there before.

        Raises:
            Interrupted: On all ranks.
            StoppedError: Likewise.
        """
        self._world.agreed(lambda: None)
        if self._world.first_does(self._folder.stop_wanted):
            self.end("the stop file", "before its first step")

    def end(self, stop: str, where: str) -> NoReturn:
        """End the run, as `after_step` has asked for; every rank calls it."""
        by = stop.removeprefix("the ").split(" (")[0]
        raise StoppedError(f"stopped by {stop} {where}; the same command goes on", by)

    def _mine(self) -> int:
        """What asks this rank: a signal, or what only the first rank looks for; 0 if nothing does."""
        if number := signals.requested():
            return number
        if self._world.rank:
            return 0
        now = time.monotonic()
        if not self._file_seen and now - self._looked >= _LOOK_SECONDS:
            self._looked, self._file_seen = now, self._folder.stop_wanted()
        return signals.STOP_FILE if self._file_seen else signals.TIME_LIMIT if now >= self._deadline else 0

    def after_step(self) -> str | None:
        """What asks any rank, in words, the same on all ranks; every rank calls it after each step."""
        told, mine = self._told, self._mine()
        word = torch.tensor(mine and mine * _RANKS + self._world.rank)
        if self._world.size == 1:
            return _words(int(word), alone=True)
        # The largest wins, with the rank that it came from.
        self._told = word, dist.all_reduce(word, dist.ReduceOp.MAX, group=self._world.objects, async_op=True)
        if told is None:
            return None
        told[1].wait()
        return _words(int(told[0]), alone=False)


def _words(word: int, *, alone: bool) -> str | None:
    number, rank = divmod(word, _RANKS)
    if not number:
        return None
    name = signals.name_of(number)
    if number in (signals.STOP_FILE, signals.TIME_LIMIT):
        return f"the {name}"
    return name if alone else f"{name} (rank {rank})"
