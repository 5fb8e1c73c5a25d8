"""Giving a corpus that has been written under other names its own, so that a kill at any moment shows."""

from pathlib import Path

from megaqk.corpus.journal import partial_index_path, partial_path
from megaqk.data.indexed import data_path, index_path
from megaqk.data.manifest import Manifest, manifest_path, write_manifest
from megaqk.runtime.files import os_errors_named, sync_directory


def publish(prefix: Path, manifest: Manifest | None) -> None:
    """Rename the partial data and index to what they are, in place of what was there.

    The old manifest goes first, so that it never describes new files, and the old data next; the new data's rename is
    the last step and makes all of it a corpus. Whatever interrupts this leaves the partial data, with which the
    corpus is unfinished and can be published again.

    Args:
        prefix: Path of the corpus without extension.
        manifest: Its manifest; None leaves it without one.

    Raises:
        UserError: The operating system refused.
    """
    with os_errors_named(prefix):
        for path in (manifest_path(prefix), data_path(prefix)):
            path.unlink(missing_ok=True)
            # Directory entries reach the disk in the order of these only because each waits for the one before.
            sync_directory(prefix.parent)
        partial_index_path(prefix).replace(index_path(prefix))
        sync_directory(prefix.parent)
    if manifest is not None:
        write_manifest(prefix, manifest)
    with os_errors_named(prefix):
        partial_path(prefix).replace(data_path(prefix))
        sync_directory(prefix.parent)
