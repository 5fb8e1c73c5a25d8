"""What there is of a corpus: all of it, or how much of an unfinished one is good."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megaqk.corpus.parsing import EMPTY
from megaqk.data.indexed import data_path, index_path
from megaqk.data.manifest import Manifest, measured, read_manifest, sizes_match
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, written_whole


@dataclass
class Journal:
    """Contents of PREFIX.journal.json.

    Attributes:
        state: What the corpus is being made from; another state starts afresh.
        step: First step (see `lanes`) that is not done.
        tokens: Tokens in PREFIX.bin.partial.
        documents: Documents in PREFIX.len.partial, one int32 length each.
        skipped: Documents left out, by reason.
    """

    state: dict[str, Any]
    step: int = 0
    tokens: int = 0
    documents: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def journal_path(prefix: Path) -> Path:
    """Return PREFIX.journal.json."""
    return prefix.with_name(prefix.name + ".journal.json")


def partial_path(prefix: Path) -> Path:
    """Return PREFIX.bin.partial."""
    return prefix.with_name(prefix.name + ".bin.partial")


def partial_index_path(prefix: Path) -> Path:
    """Return PREFIX.idx.partial."""
    return prefix.with_name(prefix.name + ".idx.partial")


def lengths_path(prefix: Path) -> Path:
    """Return PREFIX.len.partial."""
    return prefix.with_name(prefix.name + ".len.partial")


def write_journal(prefix: Path, journal: Journal) -> None:
    """Write the journal, whole or not at all; what it vouches for must have been synced."""
    with written_whole(journal_path(prefix)) as path:
        path.write_text(json.dumps(asdict(journal)), encoding="utf-8")


def read_journal(prefix: Path) -> Journal | None:
    """Read the journal; None if there is none, or one that is damaged and so vouches for nothing."""
    try:
        record: dict[str, Any] = json.loads(journal_path(prefix).read_text(encoding="utf-8"))
        counts = [record["step"], record["tokens"], record["documents"], *record["skipped"].values()]
        # bool is an int to isinstance.
        sound = isinstance(record["state"], dict) and all(type(count) is int and count >= 0 for count in counts)
        return Journal(**record) if sound else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def open_journal(prefix: Path, state: dict[str, Any], itemsize: int) -> Journal:
    """Cut the partial files back to what the journal vouches for, and return it; else start both empty.

    Args:
        prefix: Path of the corpus without extension.
        state: What the corpus is to be made from.
        itemsize: Bytes of a token.

    Raises:
        UserError: The operating system refused.
    """
    partial, lengths = partial_path(prefix), lengths_path(prefix)
    found = read_journal(prefix)
    journal = found if found is not None and found.state == state else Journal(state)
    try:
        if partial.stat().st_size < journal.tokens * itemsize or lengths.stat().st_size < 4 * journal.documents:
            journal = Journal(state)
    except OSError:
        journal = Journal(state)
    with os_errors_named(partial):
        for path, size in ((partial, journal.tokens * itemsize), (lengths, 4 * journal.documents)):
            path.touch()
            os.truncate(path, size)
    return journal


def remove_journal(prefix: Path) -> None:
    """Remove what only an unfinished corpus needs."""
    for path in (journal_path(prefix), lengths_path(prefix), partial_index_path(prefix), partial_path(prefix)):
        path.unlink(missing_ok=True)


def find_made(
    prefix: Path, state: dict[str, Any], itemsize: int, *, skip_bad: bool, overwrite: bool, threads: int
) -> tuple[Manifest | None, Journal]:
    """Find a finished corpus made from `state`, or open the journal of one to begin or to go on with.

    Args:
        prefix: Path of the corpus without extension.
        state: What the corpus is to be made from.
        itemsize: Bytes of a token.
        skip_bad: Whether malformed documents may be missing.
        overwrite: Replace what was made from something else, lacks documents, or has been damaged since.
        threads: Threads that read a corpus which must be whole to be kept.

    Returns:
        The manifest of a finished corpus or None, and the journal.

    Raises:
        UserError: Something is there that would have to be overwritten.
    """
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
        if skip_bad or not _bad(manifest.skipped):
            if not overwrite or _is_intact(prefix, manifest, threads):
                return manifest, Journal(state)
        elif not overwrite:
            raise _other_policy(data_path(prefix), manifest.skipped)
    if data_path(prefix).exists() and not overwrite:
        what = "was made from other inputs or another tokenizer" if whole else "is not from an earlier run of this"
        if manifest is not None and manifest.source == state:
            what = "is unfinished"
        raise UserError(f"{data_path(prefix)}: exists and {what}: choose another output or overwrite it")
    if begun is not None and begun.state == state and not skip_bad and _bad(begun.skipped):
        if not overwrite:
            raise _other_policy(partial_path(prefix), begun.skipped)
        remove_journal(prefix)
    return None, open_journal(prefix, state, itemsize)


def _is_intact(prefix: Path, manifest: Manifest, threads: int) -> bool:
    # Who overwrites wants the corpus right, and the sizes do not show a damage.
    parts = ((data_path(prefix), manifest.data), (index_path(prefix), manifest.index))
    return all(measured(path, threads=threads) == contents for path, contents in parts)


def _bad(skipped: dict[str, int]) -> int:
    # Empty documents are left out whatever the policy.
    return sum(count for reason, count in skipped.items() if reason != EMPTY)


def _other_policy(path: Path, skipped: dict[str, int]) -> UserError:
    return UserError(
        f"{path}: was made with --bad-documents skip and lacks {_bad(skipped)} documents: go on with skip, or overwrite"
    )
