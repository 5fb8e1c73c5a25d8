"""The file of one rank: its pieces, in the safetensors format, hashed while they are written."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.index import Piece

_WRITE_BYTES = 1 << 23


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
    text += b" " * (-len(text) % 8)  # what follows is aligned
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
        for block in (memoryview(header), content):
            done = 0
            while done < len(block):
                done += file.write(block[done : done + _WRITE_BYTES])
        os.fsync(file.fileno())
        return tuple(
            Piece(name, box, len(header) + place.start, digest)
            for (name, box), place, digest in zip(parts, places, digests, strict=True)
        )
