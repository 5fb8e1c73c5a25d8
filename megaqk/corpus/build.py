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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megaqk.corpus.encoding import Encoded, Recipe, encode_in_order
from megaqk.corpus.journal import Journal, find_made, remove_journal, write_journal
from megaqk.corpus.progress_bar import ProgressLine
from megaqk.corpus.shards import Place, Shards
from megaqk.corpus.sources import Source
from megaqk.corpus.writer import IndexPart, partial_files, publish, write_index
from megaqk.data.checksum import measured
from megaqk.data.indexed import file_of, token_dtype
from megaqk.data.manifest import Manifest
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, agreed, each
from megaqk.runtime.files import os_errors_named, sha256_of, sync_file
from megaqk.runtime.locks import exclusive_lock

JOURNAL_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class _Plan:
    """What is made where; `state` is what it is made from."""

    prefix: Path
    recipe: Recipe
    vocab_size: int
    eod_id: int
    state: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        return token_dtype(self.vocab_size)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same on all ranks, whose shares would fit together whatever they were made from."""
        return {
            "tokenizer": self.state["tokenizer"],
            "end-of-document token": self.eod_id,
            "inputs": hashlib.sha256(json.dumps(self.state["sources"]).encode()).hexdigest(),
            "output": str(self.prefix),
            "bad-documents": self.recipe.skip_bad,
        }


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

    Raises:
        UserError: An input or the output is at fault, or the ranks disagree on them; on every rank, whichever met it.
            What was done is kept.
        Interrupted: A signal (see `stop_signals`) or a keyboard interrupt; likewise.
    """
    plan = _agreed_plan(sources, prefix, recipe, comm)
    with contextlib.ExitStack() as stack:

        def look() -> tuple[Manifest | None, Journal]:
            # Rank 0 looks (and cuts the partial files back) for all.
            if comm.rank:
                return None, Journal(state={})
            waiting = f"{prefix}: another process is making it, waiting for it to end"
            stack.enter_context(exclusive_lock(file_of(prefix.with_name(f".{prefix.name}"), ".lock"), waiting=waiting))
            return find_made(prefix, plan.state, plan.dtype.itemsize, skip_bad=recipe.skip_bad, overwrite=overwrite)

        found, journal = agreed(comm, look)[0]
        if found is None:
            journal = _encode_all(plan, Shards(sources, rank=comm.rank, size=comm.size), journal, comm, workers)
            found = _finish(plan, journal, comm, workers)
        agreed(comm, lambda: remove_journal(prefix) if comm.rank == 0 else None)
    return found


def _agreed_plan(sources: Sequence[Source], prefix: Path, recipe: Recipe, comm: Comm) -> _Plan:
    plans: list[_Plan] = []

    def describe() -> dict[str, Any]:
        tokenizer = load_tokenizer(recipe.tokenizer, recipe.eod_token)
        state: dict[str, Any] = {
            "sources": [source.state() for source in sources],
            "tokenizer": sha256_of(recipe.tokenizer),
        }
        # The one found by name follows from the tokenizer.
        state |= {} if recipe.eod_token is None else {"eod_id": tokenizer.eod_id}
        plans.append(_Plan(prefix, recipe, tokenizer.vocab_size, tokenizer.eod_id, state))
        return plans[0].fingerprint()

    first, *others = agreed(comm, describe)
    for rank, other in enumerate(others, start=1):
        if differing := [name for name in first if other[name] != first[name]]:
            raise UserError(
                f"{', '.join(differing)}: rank {rank} has not the same as rank 0: give all ranks the same command, and "
                "files that all of them see"
            )
    return plans[0]


class _Encodings:
    """Encoded chunks as they come, of which the first beyond a step is kept back."""

    def __init__(self, encoded: Iterator[tuple[Place, Encoded]]) -> None:
        self._encoded = encoded
        self._next: tuple[Place, Encoded] | None = None
        # By shard: the share of it that has been returned.
        self.consumed: dict[int, float | None] = {}

    def before(self, step: int) -> dict[Place, Encoded]:
        """Return the chunks of all steps below `step` that were not returned yet."""
        taken = {}
        while (item := self._next or next(self._encoded, None)) is not None and item[0][0] < step:
            self._next = None
            taken[item[0]] = item[1]
            self.consumed[item[0][1]] = item[1].consumed
        self._next = item
        return taken


@dataclass(frozen=True)
class _Summary:
    """What the other ranks must know of an encoded chunk."""

    place: Place
    lengths: npt.NDArray[np.int32]
    skipped: Counter[str]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


class _Writing:
    """Bringing the partial files from where the journal stands to the end of the inputs."""

    def __init__(self, plan: _Plan, journal: Journal, data: IO[bytes], encodings: _Encodings, comm: Comm) -> None:
        # What the files hold; replaced as a whole, so that an interrupt finds it whole.
        self.journal = journal
        self._prefix = plan.prefix
        self._itemsize = plan.dtype.itemsize
        self._partial = partial_files(plan.prefix)
        self._data = data
        self._encodings = encodings
        self._comm = comm
        self._kept = time.monotonic()

    def exchange(self, steps: int) -> bool:
        """Do the next `steps` steps with all ranks; return whether there were any."""
        until = self.journal.step + steps
        mine: dict[Place, Encoded] = {}

        def collect() -> tuple[bool, list[_Summary]]:
            mine.update(self._encodings.before(until))
            due = time.monotonic() - self._kept >= JOURNAL_EVERY_SECONDS
            return due, [_Summary(place, chunk.lengths, chunk.skipped) for place, chunk in mine.items()]

        gathered = agreed(self._comm, collect)
        summaries = sorted((one for _, part in gathered for one in part), key=lambda one: one.place)
        agreed(self._comm, lambda: self._write(summaries, mine))
        self.journal = Journal(
            state=self.journal.state,
            step=until,
            tokens=self.journal.tokens + sum(one.tokens for one in summaries),
            documents=self.journal.documents + sum(len(one.lengths) for one in summaries),
            skipped=dict(sum((one.skipped for one in summaries), Counter(self.journal.skipped))),
        )
        # Clocks differ: rank 0 decides for all.
        if gathered[0][0]:
            self.keep()
        return bool(summaries)

    def _write(self, summaries: list[_Summary], mine: dict[Place, Encoded]) -> None:
        first = self.journal.tokens
        with os_errors_named(self._partial.data):
            for summary in summaries:
                if summary.place in mine:
                    _write_at(self._data.fileno(), mine[summary.place].tokens, first * self._itemsize)
                first += summary.tokens
        if self._comm.rank == 0:
            with os_errors_named(self._partial.lengths), self._partial.lengths.open("ab") as stream:
                for summary in summaries:
                    stream.write(summary.lengths.astype("<i4").tobytes())

    def keep(self) -> None:
        """Make what has been written durable and let the journal vouch for it."""
        first = self._comm.rank == 0
        agreed(self._comm, self._sync, interruptible=False)
        agreed(self._comm, lambda: write_journal(self._prefix, self.journal) if first else None, interruptible=False)
        self._kept = time.monotonic()

    def _sync(self) -> None:
        with os_errors_named(self._partial.data):
            os.fsync(self._data.fileno())
        if self._comm.rank == 0:
            with os_errors_named(self._partial.lengths):
                sync_file(self._partial.lengths)


def _encode_all(plan: _Plan, shards: Shards, journal: Journal, comm: Comm, workers: int) -> Journal:
    with contextlib.ExitStack() as stack:
        encoded = encode_in_order(shards.chunks(journal.step), plan.recipe, workers=workers)
        stack.callback(lambda: getattr(encoded, "close", lambda: None)())
        data = stack.enter_context(each(comm, lambda: partial_files(plan.prefix).data.open("r+b", buffering=0)))
        encodings = _Encodings(encoded)
        writing = _Writing(plan, journal, data, encodings, comm)
        progress = stack.enter_context(contextlib.closing(ProgressLine("tokenising", shown=comm.rank == 0)))
        try:
            while writing.exchange(shards.steps_per_exchange):
                progress.update(writing.journal.tokens - journal.tokens, list(encodings.consumed.values()))
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


def _finish(plan: _Plan, journal: Journal, comm: Comm, workers: int) -> Manifest:
    if not journal.documents:
        raise UserError(f"{', '.join(one['name'] for one in journal.state['sources'])}: no document with any text")
    partial = partial_files(plan.prefix)

    def index() -> None:
        if comm.rank == 0:
            lengths = np.memmap(partial.lengths, dtype="<i4", mode="r", shape=(journal.documents,))
            write_index(partial.idx, plan.dtype, [IndexPart(lengths, range(journal.documents + 1))])

    agreed(comm, index)
    manifest = Manifest(
        source=journal.state,
        tokenizer=plan.recipe.tokenizer.name,
        tokenizer_sha256=journal.state["tokenizer"],
        vocab_size=plan.vocab_size,
        eod_id=plan.eod_id,
        documents=journal.documents,
        tokens=journal.tokens,
        skipped=journal.skipped,
        data=measured(partial.data, comm=comm, threads=workers),
        index=measured(partial.idx, comm=comm, threads=workers),
    )
    agreed(comm, lambda: publish(plan.prefix, manifest) if comm.rank == 0 else None)
    return manifest
