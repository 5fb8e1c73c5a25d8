import struct
from pathlib import Path

import numpy as np
import pytest

from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import IndexedCorpus, token_dtype
from megaqk.errors import UserError
from tests.corpora import write_corpus

# Two documents, [1, 2, 3] in two sequences and [4], as the format's description has them, written by hand.
DATA = struct.pack("<4H", 1, 2, 3, 4)
INDEX = b"".join(
    [
        b"MMIDIDX\x00\x00",
        struct.pack("<QBQQ", 1, 8, 3, 3),
        struct.pack("<3i", 2, 1, 1),
        struct.pack("<3q", 0, 4, 6),
        struct.pack("<3q", 0, 2, 3),
    ]
)


def put(directory: Path, index: bytes, data: bytes) -> Path:
    prefix = directory / "c.orpus"
    prefix.with_name("c.orpus.idx").write_bytes(index)
    prefix.with_name("c.orpus.bin").write_bytes(data)
    return prefix


def test_reads_bytes_written_by_hand(tmp_path: Path) -> None:
    corpus = IndexedCorpus(put(tmp_path, INDEX, DATA))
    assert (corpus.num_documents, corpus.num_sequences, corpus.num_tokens) == (2, 3, 4)
    assert corpus.document(0).tolist() == [1, 2, 3]
    assert corpus.document(1).tolist() == [4]
    assert [corpus.start_of(i) for i in range(3)] == [0, 3, 4]


def test_writes_bytes_computed_by_hand(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", np.dtype("<i4"), [np.array([7, 8]), np.array([], int), np.array([70000])])
    assert (tmp_path / "c.bin").read_bytes() == struct.pack("<3i", 7, 8, 70000)
    assert (tmp_path / "c.idx").read_bytes() == b"".join(
        [
            b"MMIDIDX\x00\x00",
            struct.pack("<QBQQ", 1, 4, 3, 4),
            struct.pack("<3i", 2, 0, 1),
            struct.pack("<3q", 0, 8, 8),
            struct.pack("<4q", 0, 1, 2, 3),
        ]
    )


def test_index_is_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).integers(0, 9, 1000).astype(np.int32)
    write_index(tmp_path / "whole.idx", np.dtype("<u2"), [IndexPart(lengths, range(len(lengths) + 1))])
    monkeypatch.setattr("megaqk.corpus.writer._BLOCK", 7)
    write_index(tmp_path / "blocks.idx", np.dtype("<u2"), [IndexPart(lengths, range(len(lengths) + 1))])
    assert (tmp_path / "blocks.idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()


def test_token_type_is_megatrons() -> None:
    assert token_dtype(65499) == np.uint16
    assert token_dtype(65500) == np.int32


def patched(at: int, layout: str, value: int) -> bytes:
    size = struct.calcsize(layout)
    return INDEX[:at] + struct.pack(layout, value) + INDEX[at + size :]


@pytest.mark.parametrize(
    ("index", "data", "message"),
    [
        (b"", DATA, "0 bytes: an index has at least 34"),
        (INDEX[:20], DATA, "20 bytes"),
        (b"MMAPIDX\x00\x00" + INDEX[9:], DATA, "starts with b'MMAPIDX"),
        (patched(9, "<Q", 2), DATA, "version 2: must be 1"),
        (patched(17, "<B", 6), DATA, "token type code 6: must be one of 1, 2, 3, 4, 5, 8"),
        (patched(18, "<Q", 2**63), DATA, "9223372036854775808 sequences"),
        (patched(26, "<Q", 4), DATA, "3 sequences and 4 document entries take 102"),
        (INDEX[:-1], DATA, "93 bytes"),
        (INDEX + b"\x00", DATA, "95 bytes"),
        (patched(34, "<i", -2), DATA, "sequence 0 has length -2"),
        (patched(34, "<i", 2**31 - 1), DATA, "sequence 1 starts at byte 4"),
        (patched(42, "<i", 3), DATA, "describes 12 bytes of tokens, but .*c.orpus.bin has 8"),
        (patched(54, "<q", 2**62), DATA, "sequence 1 starts at byte 4611686018427387904: must start at 4"),
        (patched(70, "<q", 1), DATA, "document entries must run from 0"),
        (patched(78, "<q", -1), DATA, "must not"),
        (patched(86, "<q", 4), DATA, "document entries must run from 0"),
        (INDEX, DATA[:-2], "describes 8 bytes of tokens, but .* has 6"),
        (INDEX, DATA[:-1], "7 bytes, not whole uint16 tokens"),
        (INDEX, DATA + DATA, "describes 8 bytes of tokens, but .* has 16"),
        (INDEX, b"", "describes 4 bytes|describes 8 bytes"),
    ],
)
def test_malformed_corpora_are_named(tmp_path: Path, index: bytes, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        IndexedCorpus(put(tmp_path, index, data))
    assert "c.orpus.idx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.idx: No such file"):
        IndexedCorpus(tmp_path / "absent")


def test_a_trusted_index_is_checked_at_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaqk.data.indexed._BLOCK", 4)
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.arange(3)] * 20)
    index = bytearray((tmp_path / "c.idx").read_bytes())
    assert IndexedCorpus(tmp_path / "c", trusted=True).document(19).tolist() == [0, 1, 2]
    index[34 + 4 * 5] = 9
    (tmp_path / "c.idx").write_bytes(index)
    IndexedCorpus(tmp_path / "c", trusted=True)
    with pytest.raises(UserError, match="sequence 6 starts"):
        IndexedCorpus(tmp_path / "c")
    (tmp_path / "c.bin").write_bytes((tmp_path / "c.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match="bytes of tokens"):
        IndexedCorpus(tmp_path / "c", trusted=True)


@pytest.mark.parametrize("entry", [-1, 1000, 2**62])
def test_a_damaged_entry_of_a_trusted_index_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: int
) -> None:
    monkeypatch.setattr("megaqk.data.indexed._BLOCK", 4)
    write_corpus(tmp_path / "c", np.dtype("<u2"), [np.arange(3)] * 20)
    index = (tmp_path / "c.idx").read_bytes()
    at = 34 + 12 * 20 + 8 * 5
    (tmp_path / "c.idx").write_bytes(index[:at] + struct.pack("<q", entry) + index[at + 8 :])
    with pytest.raises(UserError, match=rf"c.idx: document entry 5 is {entry}: must be in \[0, 20\]"):
        IndexedCorpus(tmp_path / "c", trusted=True).document(5)
    at = 34 + 4 * 20 + 8 * 5
    (tmp_path / "c.idx").write_bytes(
        index[:at] + struct.pack("<q", 8 * entry if entry < 2**60 else entry) + index[at + 8 :]
    )
    with pytest.raises(UserError, match=r"c.idx: sequence 5 starts at token"):
        IndexedCorpus(tmp_path / "c", trusted=True).document(5)


def test_a_multimodal_index_of_text_is_read_and_images_are_refused(tmp_path: Path) -> None:
    assert IndexedCorpus(put(tmp_path, INDEX + bytes(3), DATA)).document(0).tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=r"c.orpus.idx: a multimodal corpus with sequences that are not text"):
        IndexedCorpus(put(tmp_path, INDEX + b"\x00\x01\x00", DATA))
