"""Checksums of files of any size, which threads and ranks divide.

The checksum is the SHA-256 of the SHA-256 digests of the file's consecutive 64 MiB blocks: the plain SHA-256 of a file
cannot be divided. Probes are short digests of 1 MiB each, spread over the file with the first and the last at its ends:
what can be checked of terabytes at every start. They cover a file of up to 64 MiB whole.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from megaqk.config.base import Section
from megaqk.runtime.agreement import Comm, Solo, agreed
from megaqk.runtime.files import os_errors_named

_T = TypeVar("_T")
Count = Annotated[int, Field(ge=0)]
BLOCK_BYTES = 64 << 20
PROBE_BYTES = 1 << 20
MAX_PROBES = 64
ALL = slice(None)


class Contents(Section):
    """What a file held when it was made. What older versions made has no probes."""

    size: Count
    checksum: str
    probes: tuple[str, ...] | None = None


def share_of(comm: Comm) -> slice:
    """Return which pieces of a divided work are this rank's."""
    return slice(comm.rank, None, comm.size)


def joined(parts: Iterable[Iterable[_T]]) -> list[_T]:
    """Return what the ranks made of their shares, in order."""
    return [piece for turn in itertools.zip_longest(*parts) for piece in turn if piece is not None]


def _block_digest(descriptor: int, block: int) -> bytes:
    digest = hashlib.sha256()
    for at in range(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES, PROBE_BYTES):
        digest.update(os.pread(descriptor, PROBE_BYTES, at))
    return digest.digest()


def probe_share(path: Path, share: slice = ALL) -> list[str]:
    """Return the probes of a file that belong to a share."""
    with os_errors_named(path), path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        offsets = list(range(0, size, PROBE_BYTES))
        if len(offsets) > MAX_PROBES:
            offsets = [number * (size - PROBE_BYTES) // (MAX_PROBES - 1) for number in range(MAX_PROBES)]
        blocks = (os.pread(stream.fileno(), PROBE_BYTES, at) for at in offsets[share])
        return [hashlib.sha256(block).hexdigest()[:16] for block in blocks]


def measured(path: Path, *, comm: Comm = Solo(), threads: int = 1) -> Contents:
    """Read all of a file, which the ranks of `comm` divide, and measure it on every rank."""

    def mine() -> tuple[int, list[bytes], list[str]]:
        with os_errors_named(path), path.open("rb") as stream, ThreadPoolExecutor(threads) as pool:
            size = stream.seek(0, os.SEEK_END)
            blocks = range(-(-size // BLOCK_BYTES))[share_of(comm)]
            # hashlib lets go of the interpreter lock while it works.
            digests = list(pool.map(lambda block: _block_digest(stream.fileno(), block), blocks))
        return size, digests, probe_share(path, share_of(comm))

    sizes, digests, probes = zip(*agreed(comm, mine), strict=True)
    checksum = hashlib.sha256(b"".join(joined(digests))).hexdigest()
    return Contents(size=sizes[0], checksum=checksum, probes=tuple(joined(probes)))
