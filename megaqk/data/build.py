"""Building a corpus from sources: on all cores, on many machines, resumable, and never half a file.

The ranks take turns in lock-step: each encodes its chunks, all learn the sizes, and each writes its tokens straight to
their final place in PREFIX.bin.partial. Nothing is written twice, and one process makes the same bytes as a thousand.
A journal beside it says up to where the partial file is good, which is where an interrupted preparation goes on.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.data.comm import Comm, agreed
from megaqk.data.documents import EMPTY
from megaqk.data.encoding import Encoded, Recipe, encode_in_order
from megaqk.data.files import exclusive_lock, os_errors_named, sha256_of
from megaqk.data.indexed import data_path, token_dtype
from megaqk.data.journal import (
    Journal,
    lengths_path,
    open_journal,
    partial_index_path,
    partial_path,
    read_journal,
    remove_journal,
    write_journal,
)
from megaqk.data.lanes import Lanes, Place
from megaqk.data.manifest import Manifest, measured, read_manifest, sizes_match
from megaqk.data.progress import Progress
from megaqk.data.publishing import publish
from megaqk.data.sources import Source
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.data.writer import IndexPart, write_index
from megaqk.errors import UserError

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
        UserError: An input or the output is at fault; on every rank, whichever met it. What was done is kept.
    """
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.eod_token)
    eod_id = tokenizer.eod_id
    state: dict[str, Any] = {
        "sources": [source.state() for source in sources],
        "tokenizer": sha256_of(recipe.tokenizer),
        # The one found by name follows from the tokenizer.
        **({} if recipe.eod_token is None else {"eod_id": eod_id}),
    }
    with contextlib.ExitStack() as stack:
        if comm.rank == 0:
            stack.enter_context(exclusive_lock(prefix.with_name(f".{prefix.name}.lock")))
        found, journal = agreed(comm, lambda: _look(prefix, state, recipe, tokenizer, overwrite, rank=comm.rank))[0]
        if found is None:
            chunks = Lanes(sources, rank=comm.rank, size=comm.size)
            _encode_all(chunks, prefix, recipe, tokenizer, journal, comm, workers)
            found = _finish(prefix, recipe, tokenizer, journal, comm, workers)
        if comm.rank == 0:
            remove_journal(prefix)
    return found


def _look(
    prefix: Path, state: dict[str, Any], recipe: Recipe, tokenizer: Tokenizer, overwrite: bool, *, rank: int
) -> tuple[Manifest | None, Journal]:
    # Rank 0 looks (and cuts the partial files back) for all.
    if rank:
        return None, Journal(state)
    try:
        manifest = read_manifest(prefix)
    except UserError:
        if not overwrite:
            raise
        manifest = None
    whole = manifest is not None and sizes_match(prefix, manifest)
    begun = read_journal(prefix)
    # Partial data is somebody's unfinished work: ours, unless a journal says otherwise.
    unfinished = partial_path(prefix).exists() and (begun is None or begun.state == state)
    if manifest is not None and whole and not unfinished and manifest.source == state:
        if recipe.skip_bad or not _bad(manifest.skipped):
            return manifest, Journal(state)
        if not overwrite:
            raise _other_policy(data_path(prefix), manifest.skipped)
    if data_path(prefix).exists() and not overwrite:
        what = "was made from other inputs or another tokenizer" if whole else "is not from an earlier run of this"
        if manifest is not None and manifest.source == state:
            what = "is unfinished"
        raise UserError(f"{data_path(prefix)}: exists and {what}: choose another output or overwrite it")
    if begun is not None and begun.state == state and not recipe.skip_bad and _bad(begun.skipped):
        if not overwrite:
            raise _other_policy(partial_path(prefix), begun.skipped)
        remove_journal(prefix)
    return None, open_journal(prefix, state, token_dtype(tokenizer.vocab_size).itemsize)


def _bad(skipped: dict[str, int]) -> int:
    # Empty documents are left out whatever the policy.
    return sum(count for reason, count in skipped.items() if reason != EMPTY)


def _other_policy(path: Path, skipped: dict[str, int]) -> UserError:
    return UserError(
        f"{path}: was made with --bad-documents skip and lacks {_bad(skipped)} documents: go on with skip, or overwrite"
    )


class _Writing:
    """Bringing the partial files from where the journal stands to the end of the inputs."""

    def __init__(self, prefix: Path, journal: Journal, encoded: "_Ahead", comm: Comm, dtype: np.dtype[Any]) -> None:
        self._prefix = prefix
        self._journal = journal
        self._encoded = encoded
        self._comm = comm
        self._itemsize = dtype.itemsize
        self._synced = time.monotonic()
        with os_errors_named(partial_path(prefix)):
            self._descriptor = os.open(partial_path(prefix), os.O_RDWR)

    def exchange(self, steps: int) -> bool:
        """Do the next `steps` steps with all ranks; return whether there were any."""
        until = self._journal.step + steps
        mine: dict[Place, Encoded] = {}

        def collect() -> tuple[bool, list[_Summary]]:
            mine.update(self._encoded.before(until))
            due = time.monotonic() - self._synced >= JOURNAL_EVERY_SECONDS
            return due, [_Summary(place, chunk.lengths, chunk.skipped) for place, chunk in mine.items()]

        gathered = agreed(self._comm, collect)
        # Clocks differ: rank 0 decides for all when to sync.
        due = gathered[0][0]
        summaries = sorted((one for _, part in gathered for one in part), key=lambda one: one.place)
        agreed(self._comm, lambda: self._write(summaries, mine, sync=due))
        journal = self._journal
        journal.step = until
        journal.tokens += sum(int(one.lengths.sum(dtype=np.int64)) for one in summaries)
        journal.documents += sum(len(one.lengths) for one in summaries)
        journal.skipped = dict(sum((one.skipped for one in summaries), Counter(journal.skipped)))
        if due:
            self._synced = time.monotonic()
            agreed(self._comm, lambda: write_journal(self._prefix, journal) if self._comm.rank == 0 else None)
        return bool(summaries)

    def _write(self, summaries: list[_Summary], mine: dict[Place, Encoded], *, sync: bool) -> None:
        first = self._journal.tokens
        with os_errors_named(partial_path(self._prefix)):
            for summary in summaries:
                if summary.place in mine:
                    _write_at(self._descriptor, mine[summary.place].tokens, first * self._itemsize)
                first += int(summary.lengths.sum(dtype=np.int64))
            if sync:
                os.fsync(self._descriptor)
        path = lengths_path(self._prefix)
        if self._comm.rank == 0:
            with os_errors_named(path), path.open("ab") as stream:
                for summary in summaries:
                    stream.write(summary.lengths.astype("<i4").tobytes())
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())

    def close(self) -> None:
        """Sync and close the data."""
        try:
            with os_errors_named(partial_path(self._prefix)):
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def _encode_all(
    lanes: Lanes, prefix: Path, recipe: Recipe, tokenizer: Tokenizer, journal: Journal, comm: Comm, workers: int
) -> None:
    with (
        contextlib.closing(_Ahead(encode_in_order(lanes.chunks(journal.step), recipe, workers=workers))) as encoded,
        contextlib.closing(_Writing(prefix, journal, encoded, comm, token_dtype(tokenizer.vocab_size))) as writing,
        contextlib.closing(Progress("tokenising", shown=comm.rank == 0)) as progress,
    ):
        already = journal.tokens
        while writing.exchange(lanes.steps_per_exchange):
            progress.update(journal.tokens - already, encoded.consumed)


class _Ahead:
    """Encoded chunks up to a step, with the first one beyond it kept back."""

    def __init__(self, encoded: Iterator[tuple[Place, Encoded]]) -> None:
        self._encoded = encoded
        self._kept: tuple[Place, Encoded] | None = None
        self._shares: dict[int, float | None] = {}

    def before(self, until: int) -> Iterator[tuple[Place, Encoded]]:
        """Yield the chunks of all steps below `until` that were not yielded yet."""
        while True:
            item = self._kept or next(self._encoded, None)
            self._kept = item
            if item is None or item[0][0] >= until:
                return
            self._kept = None
            self._shares[item[0][1]] = item[1].consumed
            yield item

    @property
    def consumed(self) -> float | None:
        """Share of this rank's inputs that went into what was yielded, in [0, 1]; None where sizes are unknown."""
        known = [share for share in self._shares.values() if share is not None]
        return sum(known) / max(len(known), 1) if len(known) == len(self._shares) else None

    def close(self) -> None:
        """End the tokenising processes."""
        close = getattr(self._encoded, "close", None)
        if close is not None:
            close()


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
        data=measured(partial_path(prefix), comm=comm, threads=workers),
        index=measured(partial_index_path(prefix), comm=comm, threads=workers),
    )

    agreed(comm, lambda: publish(prefix, manifest) if comm.rank == 0 else None)
    return manifest
