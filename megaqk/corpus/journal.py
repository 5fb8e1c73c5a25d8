"""What there is of a corpus: all of it, or how much of an unfinished one is good."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field

from megaqk.config.base import Section
from megaqk.corpus.parsing import EMPTY
from megaqk.corpus.writer import partial_files
from megaqk.data.checksum import Count
from megaqk.data.indexed import data_path
from megaqk.data.manifest import Manifest, read_manifest
from megaqk.data.verification import damaged_file, sizes_match
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, written_whole


class Journal(Section):
    """Contents of PREFIX.journal.json."""

    state: dict[str, Any]  # what the corpus is being made from; another state starts afresh
    step: Count = 0  # the first (see `shards`) that is not done
    tokens: Count = 0  # in the partial data
    documents: Count = 0  # in the partial lengths, one int32 each
    skipped: dict[str, Count] = Field(default_factory=dict)


def write_journal(prefix: Path, journal: Journal) -> None:
    """Write the journal, whole or not at all; what it vouches for must have been synced."""
    with written_whole(partial_files(prefix).journal) as path:
        path.write_text(journal.model_dump_json(), encoding="utf-8")


def read_journal(prefix: Path) -> Journal | None:
    """Read the journal; None if there is none, or one that is damaged and so vouches for nothing."""
    try:
        return Journal.model_validate_json(partial_files(prefix).journal.read_bytes())
    except (OSError, ValueError):
        return None


def open_journal(prefix: Path, state: dict[str, Any], itemsize: int) -> Journal:
    """Cut the partial files back to what the journal vouches for, and return it; else start both empty."""
    partial = partial_files(prefix)
    found = read_journal(prefix)
    journal = found if found is not None and found.state == state else Journal(state=state)
    with os_errors_named(partial.data):
        for path in (partial.data, partial.lengths):
            path.touch()
        sizes = partial.data.stat().st_size, partial.lengths.stat().st_size
        if sizes[0] < journal.tokens * itemsize or sizes[1] < 4 * journal.documents:
            journal = Journal(state=state)
        os.truncate(partial.data, journal.tokens * itemsize)
        os.truncate(partial.lengths, 4 * journal.documents)
    return journal


def remove_journal(prefix: Path) -> None:
    """Remove what only an unfinished corpus needs."""
    for path in partial_files(prefix):
        path.unlink(missing_ok=True)


def find_made(
    prefix: Path, state: dict[str, Any], itemsize: int, *, skip_bad: bool, overwrite: bool
) -> tuple[Manifest | None, Journal]:
    """Find a finished corpus made from `state`, or open the journal of one to begin or to go on with.

    Args:
        prefix: Path of the corpus without extension.
        state: What the corpus is to be made from.
        itemsize: Bytes of a token.
        skip_bad: Whether malformed documents may be missing.
        overwrite: Replace what was made from something else, lacks documents, or has been damaged since.
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
    unfinished = partial_files(prefix).data.exists() and (begun is None or begun.state == state)
    if manifest is not None and manifest.source == state and whole and not unfinished:
        if not skip_bad and _bad(manifest.skipped):
            if not overwrite:
                raise _other_policy(data_path(prefix), manifest.skipped)
        # Who overwrites wants the corpus right, and the sizes do not show a damage.
        elif not overwrite or damaged_file(prefix, manifest) is None:
            return manifest, Journal(state=state)
    if data_path(prefix).exists() and not overwrite:
        what = "was made from other inputs or another tokenizer" if whole else "is not from an earlier run of this"
        if manifest is not None and manifest.source == state:
            what = "is unfinished"
        raise UserError(f"{data_path(prefix)}: exists and {what}: choose another output or overwrite it")
    if begun is not None and begun.state == state and not skip_bad and _bad(begun.skipped):
        if not overwrite:
            raise _other_policy(partial_files(prefix).data, begun.skipped)
        remove_journal(prefix)
    return None, open_journal(prefix, state, itemsize)


def _bad(skipped: dict[str, int]) -> int:
    # Empty documents are left out whatever the policy.
    return sum(count for reason, count in skipped.items() if reason != EMPTY)


def _other_policy(path: Path, skipped: dict[str, int]) -> UserError:
    return UserError(
        f"{path}: was made with --bad-documents skip and lacks {_bad(skipped)} documents: go on with skip, or overwrite"
    )
