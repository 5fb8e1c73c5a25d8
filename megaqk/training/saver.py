"""Saving beside training: a step waits for a copy of the state; writing and committing go on in a thread."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.index import Index, Piece
from megaqk.checkpoint.rank_file import file_name, write_rank_file
from megaqk.checkpoint.store import CheckpointStore
from megaqk.errors import AgreedError, UserError
from megaqk.parallel.world import World
from megaqk.runtime.agreement import agreed
from megaqk.runtime.device import copied, host_buffer
from megaqk.runtime.pulse import Pulse
from megaqk.training.engine import TrainingEngine
from megaqk.training.optimizer_state import elements_to_write, expected_shapes, loss_scale, scalars, written_parts

logger = logging.getLogger("megaqk")

_T = TypeVar("_T")
_WORTH_SAYING = 1.0
"""Seconds."""


class _SideComm:
    """All ranks, for a thread of each beside the main one: over connections of its own, so that neither waits."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.local_size = world.rank, world.size, world.local_size
        self._world, self._group = world, world.new_host_group()

    def allgather(self, value: _T) -> list[_T]:
        return self._world.allgather(value, self._group)


class CheckpointSaver:
    """Writes checkpoints, one at a time; every rank has one and calls it at the same steps.

    Args:
        store: Where to.
        engine: What to save.
    """

    def __init__(self, store: CheckpointStore, engine: TrainingEngine) -> None:
        self.store, self.engine = store, engine
        self._comm = _SideComm(engine.world)
        # There once and for all: memory that is new to a process takes longer to get than to fill.
        self._buffer = host_buffer(elements_to_write(engine), engine.world.device)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def begin(self, manifest: dict[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before it is written.

        Args:
            manifest: What to keep beside the tensors; see `megaqk.checkpoint.store.SECTIONS`. Its `state` gets what the
                optimizer keeps beside its tensors.

        Raises:
            AgreedError: The one before it could not be written; the checkpoints before that are as they were.
        """
        began = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - began) > _WORTH_SAYING:
            logger.warning(
                "step %d has waited %.1f s for the checkpoint before it to be written: save less often "
                "(checkpoint.every), or to a faster disk",
                manifest["progress"]["step"],
                waited,
            )
        parts, at = [], 0
        for part in written_parts(self.engine):
            self._buffer[at : at + part.box.numel].copy_(part.local, non_blocking=True)
            parts.append((part.tensor, part.box))
            at += part.box.numel
        arrived = copied(self.engine.world.device)
        manifest["state"] |= {"optimizer": scalars(self.engine), "loss_scale": loss_scale(self.engine)}
        # A daemon: a rank that fails must not wait for one that is gone.
        self._thread = threading.Thread(
            target=self._work, args=(manifest, parts, arrived), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _work(self, manifest: dict[str, Any], parts: list[tuple[str, Box]], arrived: Callable[[], None]) -> None:
        """What the thread of each rank does; what goes wrong is for the main thread to tell."""
        step = manifest["progress"]["step"]
        try:
            self._each_does(step, lambda: self.store.begin(step) if self._comm.rank == 0 else None)
            arrived()
            written = self._each_does(step, lambda: (self._write(step, parts), manifest["state"]["optimizer"]))
            self._each_does(step, lambda: self._commit(manifest, written) if self._comm.rank == 0 else None)
        except BaseException as error:
            self._failure = error
            if self._comm.rank == 0:  # what a full disk has taken of it is of no use
                self.store.remove_partial()

    def _each_does(self, step: int, action: Callable[[], _T]) -> list[_T]:
        """Run an action on every rank, and give all of them all results or the first failure of a disk."""

        def named() -> _T:
            try:
                return action()
            except OSError as error:
                raise UserError(f"{self.store.path(step)}: could not be saved ({error.strerror or error})") from error

        return agreed(self._comm, named, interruptible=False)

    def _write(self, step: int, parts: list[tuple[str, Box]]) -> tuple[tuple[Piece, ...], int]:
        """Write this rank's file; its pieces and its size."""
        path = self.store.partial(step) / file_name(self._comm.rank)
        # Which rank 0 has made, but a network file system may not show yet.
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces = write_rank_file(path, parts, self._buffer[: sum(box.numel for _, box in parts)])
        return pieces, path.stat().st_size

    def _commit(self, manifest: dict[str, Any], written: list[Any]) -> None:
        """Make a checkpoint of what all ranks have written."""
        odd = [rank for rank, (_, values) in enumerate(written) if values != written[0][1]]
        assert not odd, f"rank {odd[0]} has taken other steps than rank 0"
        files = {file_name(rank): file for rank, (file, _) in enumerate(written)}
        index = Index(expected_shapes(self.engine), {name: pieces for name, (pieces, _) in files.items()})
        sizes = {name: size for name, (_, size) in files.items()}
        self.store.commit(manifest["progress"]["step"], manifest, index, sizes)

    def poll(self) -> None:
        """Raise what has gone wrong in the thread, if anything has."""
        failure, self._failure = self._failure, None
        if isinstance(failure, AgreedError):
            raise AgreedError(f"{failure}; the checkpoints before it are as they were") from failure
        if failure is not None:
            raise failure

    def settle(self) -> None:
        """Wait until the last checkpoint is written, or could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @contextmanager
    def settling(self, pulse: Pulse) -> Iterator[None]:
        """A block of steps; where all ranks end in it, what is being written, of a good step, is waited for."""
        try:
            yield
        except AgreedError:
            with pulse.busy():
                self.settle()
            raise

    def wait(self) -> None:
        """Wait until the last checkpoint is written, and raise what has gone wrong with it."""
        self.settle()
        self.poll()
