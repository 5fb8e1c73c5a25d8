"""Building a corpus from sources: on all cores, on many machines, resumable, and never half a file.

The ranks take turns in lock-step: each encodes its chunks, all learn the sizes, and each writes its tokens straight to
their final place in PREFIX.bin.partial. Nothing is written twice, and one process makes the same bytes as a thousand.
A journal beside it says up to where the partial file is good, which is where an interrupted preparation goes on.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.corpus.encoding import Encoded, Recipe, encode_in_order
from megaqk.corpus.journal import (
    Journal,
    find_made,
    lengths_path,
    partial_index_path,
    partial_path,
    remove_journal,
    write_journal,
)
from megaqk.corpus.lanes import Ahead, Lanes, Place
from megaqk.corpus.progress_bar import Progress
from megaqk.corpus.publishing import publish
from megaqk.corpus.sources import Source
from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import token_dtype
from megaqk.data.manifest import Contents, Manifest, measured
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, agreed, all_done, all_done_exchanging
from megaqk.runtime.files import exclusive_lock, os_errors_named, sha256_of, sync_file

JOURNAL_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class _Summary:
    """What the other ranks must know of an encoded chunk."""

    place: Place
    lengths: npt.NDArray[np.int32]
    skipped: Counter[str]


def build_corpus(
    sources: Sequence[Source], prefix: Path, recipe: Recipe, *, comm: Comm, workers: int, overwrite: bool = False
) -> Manifest:
    """Make PREFIX.bin, PREFIX.idx and PREFIX.manifest.json, or find them made from the same inputs.

    Args:
        sources: The inputs; their order decides the order of documents.
        prefix: Path without extension.
        recipe: How chunks are encoded.
        comm: The processes at work; each calls this with the same arguments.
        workers: Tokenising processes of this rank.
        overwrite: Replace a corpus made from something else.

    Returns:
        The manifest.

    Raises:
        UserError: An input or the output is at fault, or the ranks disagree on them; on every rank, whichever met it.
            What was done is kept.
        Interrupted: A signal (see `stop_signals`) or a keyboard interrupt; likewise.
    """
    tokenizer, state = all_done(comm, lambda: _described(sources, recipe))
    _check_same(comm, prefix, state, recipe)
    with contextlib.ExitStack() as stack:

        def look() -> tuple[Manifest | None, Journal]:
            # Rank 0 looks (and cuts the partial files back) for all.
            if comm.rank:
                return None, Journal(state)
            waiting = f"{prefix}: another process is making it, waiting for it to end"
            stack.enter_context(exclusive_lock(prefix.with_name(f".{prefix.name}.lock"), waiting=waiting))
            itemsize = token_dtype(tokenizer.vocab_size).itemsize
            return find_made(prefix, state, itemsize, skip_bad=recipe.skip_bad, overwrite=overwrite, threads=workers)

        found, journal = agreed(comm, look)[0]
        if found is None:
            chunks = Lanes(sources, rank=comm.rank, size=comm.size)
            journal = _encode_all(chunks, prefix, recipe, tokenizer, journal, comm, workers)
            found = _finish(prefix, recipe, tokenizer, journal, comm, workers)
        agreed(comm, lambda: remove_journal(prefix) if comm.rank == 0 else None)
    return found


def _described(sources: Sequence[Source], recipe: Recipe) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.eod_token)
    eod_id = tokenizer.eod_id
    return tokenizer, {
        "sources": [source.state() for source in sources],
        "tokenizer": sha256_of(recipe.tokenizer),
        # The one found by name follows from the tokenizer.
        **({} if recipe.eod_token is None else {"eod_id": eod_id}),
    }


def _check_same(comm: Comm, prefix: Path, state: dict[str, Any], recipe: Recipe) -> None:
    # The ranks' shares would fit together whatever they were made from.
    mine = {
        "tokenizer": state["tokenizer"],
        "end-of-document token": state.get("eod_id"),
        "inputs": hashlib.sha256(json.dumps(state["sources"]).encode()).hexdigest(),
        "output": str(prefix),
        "bad-documents": recipe.skip_bad,
    }
    first, *others = agreed(comm, lambda: mine)
    for rank, other in enumerate(others, start=1):
        if differing := [name for name in first if other[name] != first[name]]:
            raise UserError(
                f"{', '.join(differing)}: rank {rank} has not the same as rank 0: give all ranks the same command, and "
                "files that all of them see"
            )


class _Writing:
    """Bringing the partial files from where the journal stands to the end of the inputs.

    Attributes:
        journal: What the partial files hold; replaced as a whole, so that an interrupt finds it whole.
    """

    def __init__(self, prefix: Path, journal: Journal, encoded: Ahead, comm: Comm, dtype: np.dtype[Any]) -> None:
        self.journal = journal
        self._prefix = prefix
        self._encoded = encoded
        self._comm = comm
        self._itemsize = dtype.itemsize
        self._kept = time.monotonic()
        with os_errors_named(partial_path(prefix)):
            self._data = partial_path(prefix).open("r+b", buffering=0)

    def exchange(self, steps: int) -> bool:
        """Do the next `steps` steps with all ranks; return whether there were any."""
        until = self.journal.step + steps
        mine: dict[Place, Encoded] = {}

        def collect() -> tuple[bool, list[_Summary]]:
            mine.update(self._encoded.before(until))
            due = time.monotonic() - self._kept >= JOURNAL_EVERY_SECONDS
            return due, [_Summary(place, chunk.lengths, chunk.skipped) for place, chunk in mine.items()]

        gathered = agreed(self._comm, collect)
        summaries = sorted((one for _, part in gathered for one in part), key=lambda one: one.place)
        agreed(self._comm, lambda: self._write(summaries, mine))
        before = self.journal
        self.journal = replace(
            before,
            step=until,
            tokens=before.tokens + sum(int(one.lengths.sum(dtype=np.int64)) for one in summaries),
            documents=before.documents + sum(len(one.lengths) for one in summaries),
            skipped=dict(sum((one.skipped for one in summaries), Counter(before.skipped))),
        )
        # Clocks differ: rank 0 decides for all.
        if gathered[0][0]:
            self.keep()
        return bool(summaries)

    def _write(self, summaries: list[_Summary], mine: dict[Place, Encoded]) -> None:
        first = self.journal.tokens
        with os_errors_named(partial_path(self._prefix)):
            for summary in summaries:
                if summary.place in mine:
                    _write_at(self._data.fileno(), mine[summary.place].tokens, first * self._itemsize)
                first += int(summary.lengths.sum(dtype=np.int64))
        path = lengths_path(self._prefix)
        if self._comm.rank == 0:
            with os_errors_named(path), path.open("ab") as stream:
                for summary in summaries:
                    stream.write(summary.lengths.astype("<i4").tobytes())

    def keep(self) -> None:
        """Make what has been written durable and let the journal vouch for it."""
        agreed(self._comm, self._sync, interruptible=False)
        agreed(self._comm, self._write_journal, interruptible=False)
        self._kept = time.monotonic()

    def _sync(self) -> None:
        with os_errors_named(partial_path(self._prefix)):
            os.fsync(self._data.fileno())
        if self._comm.rank == 0:
            with os_errors_named(lengths_path(self._prefix)):
                sync_file(lengths_path(self._prefix))

    def _write_journal(self) -> None:
        if self._comm.rank == 0:
            write_journal(self._prefix, self.journal)

    def close(self) -> None:
        """Close the data."""
        self._data.close()


def _encode_all(
    lanes: Lanes, prefix: Path, recipe: Recipe, tokenizer: Tokenizer, journal: Journal, comm: Comm, workers: int
) -> Journal:
    dtype = token_dtype(tokenizer.vocab_size)
    with (
        contextlib.closing(Ahead(encode_in_order(lanes.chunks(journal.step), recipe, workers=workers))) as encoded,
        contextlib.closing(all_done(comm, lambda: _Writing(prefix, journal, encoded, comm, dtype))) as writing,
        contextlib.closing(Progress("tokenising", shown=comm.rank == 0)) as progress,
    ):
        try:
            while writing.exchange(lanes.steps_per_exchange):
                progress.update(writing.journal.tokens - journal.tokens, encoded.consumed)
        except UserError:
            # All ranks have met it, here, and a rerun goes on from here. A full disk is not to be reported twice.
            with contextlib.suppress(UserError):
                writing.keep()
            raise
        except KeyboardInterrupt:
            writing.keep()
            raise
        writing.keep()
    return writing.journal


def _write_at(descriptor: int, tokens: npt.NDArray[Any], offset: int) -> None:
    left = memoryview(tokens.tobytes())
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _finish(prefix: Path, recipe: Recipe, tokenizer: Tokenizer, journal: Journal, comm: Comm, workers: int) -> Manifest:
    if not journal.documents:
        raise UserError(f"{', '.join(one['name'] for one in journal.state['sources'])}: no document with any text")

    def index() -> None:
        if comm.rank == 0:
            lengths = np.memmap(lengths_path(prefix), dtype="<i4", mode="r", shape=(journal.documents,))
            write_index(partial_index_path(prefix), token_dtype(tokenizer.vocab_size), [IndexPart(lengths)])

    def contents(path: Path) -> Contents:
        return all_done_exchanging(comm, lambda ranks: measured(path, comm=ranks, threads=workers))

    agreed(comm, index)
    manifest = Manifest(
        source=journal.state,
        tokenizer=recipe.tokenizer.name,
        tokenizer_sha256=journal.state["tokenizer"],
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        documents=journal.documents,
        tokens=journal.tokens,
        skipped=journal.skipped,
        data=contents(partial_path(prefix)),
        index=contents(partial_index_path(prefix)),
    )
    agreed(comm, lambda: publish(prefix, manifest) if comm.rank == 0 else None)
    return manifest
