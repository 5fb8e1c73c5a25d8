"""Corpora built in tests: small inputs, and ranks that are threads."""

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megaqk.corpus.build import build_corpus
from megaqk.corpus.encoding import Recipe
from megaqk.corpus.sources import Source, find_sources
from megaqk.data.manifest import Manifest
from megaqk.runtime.agreement import Solo

FILES = {"a": 40, "b": 3, "c": 90}


class ThreadComm:
    """Ranks that are threads of one process, which exchange through a shared list."""

    def __init__(self, rank: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.size = self.local_size = len(shared)
        self._shared = shared
        self._barrier = barrier

    def allgather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = pickle.dumps(value)
        self._barrier.wait(60)
        gathered = [pickle.loads(one) for one in self._shared]
        self._barrier.wait(60)
        return gathered

    def abort(self) -> None:
        self._barrier.abort()


def on_threads(size: int, work: Callable[[ThreadComm], Any]) -> list[Any]:
    """Return each rank's result or exception."""
    shared: list[Any] = [None] * size
    results: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadComm(rank, shared, barrier))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def text(name: str, number: int) -> str:
    return f"{name} says {number} times {'hello ' * (number % 11)}"


def sources(directory: Path, *names: str) -> list[Source]:
    return find_sources([str(directory / f"{name}.jsonl") for name in names or FILES], key="input")


def contents(prefix: Path) -> list[bytes]:
    return [prefix.with_name(prefix.name + suffix).read_bytes() for suffix in (".bin", ".idx")]


def make(directory: Path, recipe: Recipe, name: str = "out", *inputs: str, **keys: Any) -> Manifest:
    return build_corpus(sources(directory, *inputs), directory / name, recipe, **{"comm": Solo(), "workers": 1, **keys})
