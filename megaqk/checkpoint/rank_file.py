"""The file of one rank: its pieces, in the safetensors format, hashed while they are written."""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.index import Piece

_WRITE_BYTES = 1 << 23
_PAGE = 4096


def file_name(rank: int) -> str:
    """The name of a rank's file in a checkpoint."""
    return f"rank-{rank:05d}.safetensors"


def header_of(parts: Sequence[tuple[str, Box]]) -> bytes:
    """The beginning of a safetensors file of fp32 pieces, each called `<tensor>[first:end,...]`."""
    entries, at = {}, 0
    for name, box in parts:
        ranges = ",".join(f"{first}:{first + length}" for first, length in zip(box.first, box.shape, strict=True))
        entries[f"{name}[{ranges}]"] = {"dtype": "F32", "shape": box.shape, "data_offsets": [at, at + 4 * box.numel]}
        at += 4 * box.numel
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _PAGE)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text


def write_rank_file(path: Path, parts: Sequence[tuple[str, Box]], data: Tensor) -> tuple[Piece, ...]:
    """Write pieces and put them on the disk.

    Args:
        path: The file.
        parts: Tensor and rectangle of each.
        data: Their elements one after the other, in fp32 on the host.

    Returns:
        The pieces, for the index.

    Raises:
        OSError: It could not be written.
    """
    header, content = header_of(parts), data.numpy().view(np.uint8).data
    places, at = [], 0
    for _, box in parts:
        places.append(slice(at, at + 4 * box.numel))
        at += 4 * box.numel
    with ThreadPoolExecutor(1) as pool, path.open("wb", buffering=0) as file:
        # Beside the writing, which mostly waits.
        digests = pool.map(lambda place: hashlib.sha256(content[place]).hexdigest(), places)  # type: ignore[arg-type]
        descriptor = file.fileno()
        _write(descriptor, memoryview(header))
        with suppress(OSError):  # not every file system can
            # Past the page cache: a copy there takes memory and processor from training, and longer than the disk.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
        _write(descriptor, content)
        os.fsync(descriptor)
        return tuple(
            Piece(name, box, len(header) + place.start, digest)
            for (name, box), place, digest in zip(parts, places, digests, strict=True)
        )


def _write(descriptor: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        try:
            done += os.write(descriptor, content[done : done + _WRITE_BYTES])
        except OSError:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            if not flags & os.O_DIRECT:
                raise
            # Past the page cache go whole pages, from the beginning of one in memory: not the end of most files. And
            # what a driver has pinned may not at all.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
