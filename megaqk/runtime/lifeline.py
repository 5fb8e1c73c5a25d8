"""A ring in which each process watches the one before it: the kernel tells within moments that it has died."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from megaqk.runtime.launch import Launch

if TYPE_CHECKING:
    import torch.distributed as dist

_JOIN_SECONDS = 5.0


class Lifeline:
    """Waits for a word from the rank before this one, which sends it when it ends well.

    A machine that loses its power closes no connection: that is what the watchdog is for.

    Args:
        launch: This process, one of several.
        group: All of them, over gloo and without a limit of time.
        lost: Called in a thread with the rank whose connection broke.
    """

    def __init__(self, launch: Launch, group: "dist.ProcessGroup", lost: Callable[[int], None]) -> None:
        import torch

        self._group = group
        self._word = torch.zeros(1)
        self._before = (launch.rank - 1) % launch.world_size
        self._after = (launch.rank + 1) % launch.world_size
        self._lost = lost
        self._thread = threading.Thread(target=self._wait, name="lifeline", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        import torch.distributed as dist

        try:
            dist.recv(self._word.clone(), src=self._before, group=self._group)
        except RuntimeError:
            self._lost(self._before)

    def close(self) -> None:
        """Say that this process ends well, and hear it of the one before."""
        import torch.distributed as dist

        with suppress(RuntimeError):
            dist.send(self._word, dst=self._after, group=self._group)
        self._thread.join(_JOIN_SECONDS)
