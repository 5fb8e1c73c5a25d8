"""Whether a run is to stop before its end, which all ranks learn after the same step."""

import signal
import time
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from megaqk.errors import StoppedError
from megaqk.parallel.world import World
from megaqk.runtime import signals
from megaqk.training.run_folder import RunFolder

_FILE, _LIMIT = 1001, 1002
_LOOK_SECONDS = 1.0
_RANKS = 1 << 32


class StopRequests:
    """What asks a run to stop: a signal to any rank, the stop file, the time limit.

    Ranks tell each other after each step and listen after the next, so that no step waits for it: a request is met
    after the step that is being computed, or the one after it.

    Args:
        world: The processes.
        folder: Where a stop file may appear.
        limit: Seconds from now.
    """

    def __init__(self, world: World, folder: RunFolder, limit: float | None) -> None:
        self._world, self._folder = world, folder
        self._deadline = time.monotonic() + (float("inf") if limit is None else limit)
        self._looked, self._file_seen = 0.0, False
        self._told: tuple[torch.Tensor, Any] | None = None

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
        self._world.first_does(self._folder.take_stop_file)
        by = stop.removeprefix("the ").split(" (")[0]
        raise StoppedError(f"stopped by {stop} {where}; the same command goes on", by)

    def _mine(self) -> int:
        """What asks this rank: the number of a signal, or what only the first rank looks for; 0 if nothing does."""
        if number := signals.requested():
            return number
        if self._world.rank:
            return 0
        now = time.monotonic()
        if not self._file_seen and now - self._looked >= _LOOK_SECONDS:
            self._looked, self._file_seen = now, self._folder.stop_wanted()
        return _FILE if self._file_seen else _LIMIT if now >= self._deadline else 0

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
    if number in (_FILE, _LIMIT):
        return "the stop file" if number == _FILE else "the time limit"
    return signal.Signals(number).name + ("" if alone else f" (rank {rank})")
