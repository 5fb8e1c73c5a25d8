import bz2
import gzip
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megaqk.corpus import lines
from megaqk.corpus.lines import line_chunks
from megaqk.errors import UserError

TEXT = b"".join(b"line %d %s\n" % (i, b"x" * (i * 37 % 211)) for i in range(500)) + b"no newline at the end"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def cut_by_hand(text: bytes, size: int) -> list[bytes]:
    chunks, held = [], b""
    for line in text.splitlines(keepends=True):
        held += line
        if len(held) >= size and held.endswith(b"\n"):
            chunks.append(held)
            held = b""
    return [*chunks, held] if held else chunks


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("size", [1, 100, 5000, 10**9])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_chunks_are_cut_by_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, size: int, block: int
) -> None:
    monkeypatch.setattr(lines, "_READ", block)
    monkeypatch.setattr(lines, "_ZSTD_FEED", min(block, lines._ZSTD_FEED))
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](TEXT))
    chunks = list(line_chunks(path, size))
    assert [chunk.lines for chunk in chunks] == cut_by_hand(TEXT, size)
    assert [chunk.first for chunk in chunks] == [
        1 + TEXT[: TEXT.index(chunk.lines or b"")].count(b"\n") for chunk in chunks
    ]
    assert chunks[-1].consumed == 1


def test_concatenated_frames_are_one_text(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(PACKERS[suffix](TEXT) + PACKERS[suffix](b"more\n"))
        assert b"".join(chunk.lines or b"" for chunk in line_chunks(path, 1000)) == TEXT + b"more\n"


def with_long_window() -> bytes:
    # The size must not be known beforehand, or the window becomes as small as the text.
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(TEXT) + packer.flush()


def with_longest_window() -> bytes:
    # By hand, since the compressor fills the window's memory: magic, no flags, a window of 2^31, one last raw block.
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + (len(TEXT) << 3 | 1).to_bytes(3, "little") + TEXT


@pytest.mark.parametrize("pack", [with_long_window, with_longest_window])
def test_frames_with_long_windows_are_read(tmp_path: Path, pack: Callable[[], bytes]) -> None:
    packed = pack()
    assert zstandard.get_frame_parameters(packed).window_size > 1 << 27
    (tmp_path / "t.zst").write_bytes(packed + PACKERS[".zst"](b"more\n"))
    assert b"".join(chunk.lines or b"" for chunk in line_chunks(tmp_path / "t.zst", 1000)) == TEXT + b"more\n"


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_compression_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = PACKERS[suffix](TEXT)
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"\xff" * 40 + whole[40:])
    with pytest.raises(UserError, match=r"t\.jsonl") as caught:
        list(line_chunks(path, 1000))
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    assert list(line_chunks(tmp_path / "t", 10)) == []


@pytest.mark.parametrize("size", [1, 10**9])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, size: int) -> None:
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert b"".join(chunk.lines or b"" for chunk in line_chunks(tmp_path / "t", size)) == b"one\n\xef\xbb\xbftwo\n"


def test_what_expands_without_measure_is_held_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress((b" " * 1000 + b"\n") * 300_000))
    assert path.stat().st_size < 40_000
    tracemalloc.start()
    try:
        total = sum(len(chunk.lines or b"") for chunk in line_chunks(path, 1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 1001 * 300_000
    assert peak < 100 << 20


def test_a_line_without_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_READ", 1000)
    monkeypatch.setattr(lines, "_LONGEST_LINE", 5000)
    (tmp_path / "t").write_bytes(b"short\n" + b"x" * 10_000)
    with pytest.raises(UserError, match=r"t, from line 2: no line end within 5000 bytes"):
        list(line_chunks(tmp_path / "t", 1))
