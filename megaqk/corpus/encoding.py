"""Tokenising chunks, in this process or on all cores, in order."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from megaqk.corpus.lines import Chunk
from megaqk.corpus.parsing import bad_document, texts_of
from megaqk.data.indexed import token_dtype
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.errors import UserError
from megaqk.runtime import signals

_Tag = TypeVar("_Tag")
_GRACE_SECONDS = 2.0
_HOLDS_END = "encodes to the end-of-document token"


@dataclass(frozen=True)
class Encoded:
    """The tokens of a chunk's documents, each followed by an end of document."""

    tokens: npt.NDArray[Any]  # in the corpus' type
    lengths: npt.NDArray[np.int32]  # of each document, its end included
    skipped: Counter[str]  # documents left out, by reason
    consumed: float | None  # see `Chunk`


@dataclass(frozen=True)
class Recipe:
    """How chunks are encoded."""

    tokenizer: Path
    text_field: str
    skip_bad: bool  # leave malformed documents out and count them, instead of stopping
    eod_token: str | None = None  # see `load_tokenizer`


def encode_chunk(chunk: Chunk, recipe: Recipe, tokenizer: Tokenizer) -> Encoded:
    """Parse and tokenise one chunk; a malformed document is skipped, or a `UserError` that names its line."""
    texts, numbers, skipped = texts_of(chunk, recipe.text_field, skip_bad=recipe.skip_bad)
    encoded = tokenizer.encode_batch(texts)
    # Some tokenizers spell the end of a document in text: to whoever reads the corpus it would be two documents.
    holding = [at for at, ids in enumerate(encoded) if (ids == tokenizer.eod_id).any()]
    if holding:
        if not recipe.skip_bad:
            raise bad_document(chunk, numbers[holding[0]], _HOLDS_END)
        skipped[_HOLDS_END] += len(holding)
        encoded = [ids for ids in encoded if tokenizer.eod_id not in ids]
    dtype = token_dtype(tokenizer.vocab_size)
    eod = np.array([tokenizer.eod_id], dtype=np.int32)
    pieces = list(chain.from_iterable((ids, eod) for ids in encoded))
    tokens = np.concatenate(pieces).astype(dtype) if pieces else np.zeros(0, dtype=dtype)
    lengths = np.array([len(ids) + 1 for ids in encoded], dtype=np.int32)
    return Encoded(tokens, lengths, skipped, chunk.consumed)


def available_cores(local_ranks: int = 1) -> int:
    """Return how many cores this process may use, where `local_ranks` like it share this machine."""
    mine = len(os.sched_getaffinity(0))
    # A launcher that binds ranks to cores has divided them already.
    return mine if mine < (os.cpu_count() or 1) else max(mine // local_ranks, 1)


_worker: tuple[Recipe, Tokenizer] | None = None
_given_up = threading.Event()


def _start_worker(recipe: Recipe, stopping: Connection) -> None:
    global _worker
    # The processes share the cores already; each with a thread per core would only get in the others' way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, args=(stopping,), daemon=True).start()
    _worker = (recipe, load_tokenizer(recipe.tokenizer, recipe.eod_token))


def _end_with_parent(stopping: Connection) -> None:
    # A worker waits for work on a pipe that it holds open itself: it would outlive a parent that was killed. A parent
    # that stops gets its queue emptied, but does not wait for a long document.
    stopping.poll(None)
    _given_up.set()
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join(_GRACE_SECONDS)
    os._exit(1)


def _work(chunk: Chunk) -> Encoded:
    if _given_up.is_set():
        raise RuntimeError("nobody waits for this chunk any more")
    assert _worker is not None, "the pool runs _start_worker first"
    return encode_chunk(chunk, *_worker)


@contextlib.contextmanager
def _starting_processes() -> Iterator[None]:
    # The pool starts its processes when work is submitted. They would import the main module again, which may be slow
    # to import (torch) or do things when imported; tokenising needs none of it. They inherit that signals, which often
    # go to a whole group of processes, are blocked: to stop is the parent's to decide, and workers that die of it
    # look like a failure.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPPING)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def encode_in_order(
    chunks: Iterable[tuple[_Tag, Chunk]], recipe: Recipe, *, workers: int
) -> Iterator[tuple[_Tag, Encoded]]:
    """Encode tagged chunks on `workers` processes (1: in this one) and yield them in the order given.

    At most two chunks a worker are under way, so memory does not grow with the input. Raises a `UserError` as
    `encode_chunk`, or where a worker was killed.
    """
    if workers == 1:
        tokenizer = load_tokenizer(recipe.tokenizer, recipe.eod_token)
        for tag, chunk in chunks:
            yield tag, encode_chunk(chunk, recipe, tokenizer)
        return
    # Not forked: this process may run MPI or threads, which a fork does not survive whole.
    context = multiprocessing.get_context("spawn")
    stopping, going_on = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (recipe, stopping))
    waiting: deque[tuple[_Tag, Future[Encoded]]] = deque()
    finished = False
    try:
        for tag, chunk in chunks:
            with _starting_processes():
                waiting.append((tag, pool.submit(_work, chunk)))
            if len(waiting) >= 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
        finished = True
    except BrokenProcessPool as error:
        raise UserError("a tokenising process was killed (out of memory?); a rerun continues") from error
    finally:
        if not finished:
            # Whoever stops has better to do than to wait for what nobody wants; it ends by itself.
            going_on.close()
        pool.shutdown(wait=finished)
        going_on.close()
        stopping.close()
