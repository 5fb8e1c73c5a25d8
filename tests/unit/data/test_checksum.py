import hashlib
from pathlib import Path

import pytest

from megaqk.data import checksum
from megaqk.data.checksum import block_checksum


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
