"""The bytes of a rank's file, past the page cache or through it."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.rank_file import header_of, write_rank_file
from megaqk.runtime.device import host_buffer

SHARED_MEMORY = Path("/dev/shm")
PAGES, MORE = 1 << 20, 333
"""Elements of whole pages, and a few that end within one."""


@pytest.mark.parametrize("elements", [PAGES, PAGES + MORE, MORE])
@pytest.mark.parametrize("skipped", [0, 1], ids=["from a page's start", "from within a page"])
def test_all_of_it_is_written(tmp_path: Path, elements: int, skipped: int) -> None:
    data = host_buffer(skipped + elements, torch.device("cpu"))[skipped:]
    data.copy_(torch.randn(elements))
    parts = [("weight/a", Box((0, 2), (1, 3))), ("weight/b", Box((7,), (elements - 3,)))]
    header = header_of(parts)
    for folder in (tmp_path, SHARED_MEMORY):
        path = folder / f"{os.getpid()}.safetensors"
        try:
            pieces = write_rank_file(path, parts, data)
            assert path.read_bytes() == header + data.numpy().tobytes()
            read = load_file(path)
        finally:
            path.unlink()
        assert [piece.offset for piece in pieces] == [len(header), len(header) + 12]
        assert torch.equal(read["weight/a[0:1,2:5]"], data[:3].view(1, 3))
        assert torch.equal(read[f"weight/b[7:{4 + elements}]"], data[3:])


def test_it_leaves_the_page_cache_alone(tmp_path: Path) -> None:
    path, parts = tmp_path / "file", [("weight/a", Box((0,), (PAGES,)))]
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{tmp_path}: its file system has no O_DIRECT")
    [piece] = write_rank_file(path, parts, host_buffer(PAGES, torch.device("cpu")))
    with path.open("rb") as file, pytest.raises(BlockingIOError):
        os.preadv(file.fileno(), [bytearray(1 << 16)], piece.offset + (1 << 20), os.RWF_NOWAIT)
