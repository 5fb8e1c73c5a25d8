import hashlib
from pathlib import Path

import pytest

from megaqk.data import checksum
from megaqk.data.checksum import measured, probe_share


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_is_the_checksum_of_the_blocks_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, threads: int
) -> None:
    monkeypatch.setattr(checksum, "BLOCK_BYTES", 64)
    monkeypatch.setattr(checksum, "PROBE_BYTES", 16)
    data = bytes(i * 7 % 256 for i in range(size))
    (tmp_path / "f").write_bytes(data)
    digests = b"".join(hashlib.sha256(data[at : at + 64]).digest() for at in range(0, size, 64))
    found = measured(tmp_path / "f", threads=threads)
    assert (found.size, found.checksum) == (size, hashlib.sha256(digests).hexdigest())
    assert found.probes is not None
    shares = [probe_share(tmp_path / "f", slice(rank, None, 3)) for rank in range(3)]
    assert [shares[number % 3][number // 3] for number in range(len(found.probes))] == list(found.probes)


def test_probes_cover_small_files_and_both_ends_of_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "f", bytearray(10 << 20)
    path.write_bytes(data)
    whole = probe_share(path)
    assert len(whole) == 10
    monkeypatch.setattr(checksum, "MAX_PROBES", 3)
    part = probe_share(path)
    for at, in_part in ((0, True), (5 << 20, True), (len(data) - 1, True), (2 << 20, False)):
        data[at] = 1
        path.write_bytes(data)
        monkeypatch.setattr(checksum, "MAX_PROBES", 64)
        assert probe_share(path) != whole
        monkeypatch.setattr(checksum, "MAX_PROBES", 3)
        assert (probe_share(path) != part) == in_part
        data[at] = 0
