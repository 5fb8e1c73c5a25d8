"""A checksum that many threads or ranks can compute together.

It is the SHA-256 of the SHA-256 digests of the file's consecutive 64 MiB blocks, so that the work on a corpus of
terabytes is divided, which the plain SHA-256 of a file cannot be.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megaqk.runtime.agreement import Comm, Solo
from megaqk.runtime.files import os_errors_named

BLOCK_BYTES = 64 << 20
_READ = 1 << 20


def _block_digest(descriptor: int, block: int) -> bytes:
    digest = hashlib.sha256()
    for at in range(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES, _READ):
        data = os.pread(descriptor, _READ, at)
        digest.update(data)
        if len(data) < _READ:
            break
    return digest.digest()


def block_checksum(path: Path, *, comm: Comm | None = None, threads: int = 1) -> str:
    """Return the checksum of a file in hexadecimal, on every rank of `comm`, which divides the blocks.

    Raises:
        UserError: The file cannot be read.
    """
    comm = comm or Solo()
    with os_errors_named(path), path.open("rb") as stream:
        blocks = -(-stream.seek(0, os.SEEK_END) // BLOCK_BYTES)
        mine = range(comm.rank, blocks, comm.size)
        # hashlib lets go of the interpreter lock while it works.
        with ThreadPoolExecutor(threads) as pool:
            digests = dict(zip(mine, pool.map(lambda block: _block_digest(stream.fileno(), block), mine), strict=True))
    everyones = {block: digest for part in comm.allgather(digests) for block, digest in part.items()}
    return hashlib.sha256(b"".join(everyones[block] for block in range(blocks))).hexdigest()


def sampled_checksum(path: Path, *, at_most: int = 64 << 20) -> str:
    """Return the SHA-256 of a file's size and of its contents, or of about `at_most` bytes of them spread evenly.

    Raises:
        UserError: The file cannot be read.
    """
    with os_errors_named(path), path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"{size} ".encode())
        reads = -(-min(size, at_most) // _READ)
        for number in range(reads):
            # The first and the last read are the two ends of the file.
            at = number * (size - _READ) // (reads - 1) if size > at_most and reads > 1 else number * _READ
            digest.update(os.pread(stream.fileno(), _READ, at))
    return digest.hexdigest()
