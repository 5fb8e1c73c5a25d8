import hashlib
from pathlib import Path

import pytest

from megaqk.data import checksum
from megaqk.data.checksum import block_checksum, sampled_checksum


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_is_the_checksum_of_the_blocks_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, threads: int
) -> None:
    monkeypatch.setattr(checksum, "BLOCK_BYTES", 64)
    monkeypatch.setattr(checksum, "_READ", 16)
    data = bytes(i * 7 % 256 for i in range(size))
    (tmp_path / "f").write_bytes(data)
    digests = b"".join(hashlib.sha256(data[at : at + 64]).digest() for at in range(0, size, 64))
    assert block_checksum(tmp_path / "f", threads=threads) == hashlib.sha256(digests).hexdigest()


def test_a_sample_covers_small_files_and_both_ends_of_large_ones(tmp_path: Path) -> None:
    path, data = tmp_path / "f", bytearray(10 << 20)
    path.write_bytes(data)
    whole, part = sampled_checksum(path), sampled_checksum(path, at_most=3 << 20)
    for at, in_part in ((0, True), (5 << 20, True), (len(data) - 1, True), (2 << 20, False)):
        data[at] = 1
        path.write_bytes(data)
        assert sampled_checksum(path) != whole
        assert (sampled_checksum(path, at_most=3 << 20) != part) == in_part
        data[at] = 0
    path.write_bytes(data + b"\0")
    assert sampled_checksum(path, at_most=3 << 20) != part
