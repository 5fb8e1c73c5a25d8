import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megaqk.data import indexed
from megaqk.data.indexed import IndexedCorpus
from megaqk.errors import UserError
from tests.corpora import write_corpus

# Four documents of one token, of which the second is said to start at sequence 99.
OUT_OF_RANGE = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ4i4q5q", 1, 8, 4, 5, 1, 1, 1, 1, 0, 2, 4, 6, 0, 99, 2, 3, 4)

counts = st.one_of(st.integers(0, 4), st.integers(0, 2**64 - 1))


@st.composite
def written_corpora(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw the bytes of a good corpus and damage them in a few places."""
    lengths = draw(st.lists(st.integers(0, 5), max_size=6))
    dtype = np.dtype(draw(st.sampled_from(["<u2", "<i4"])))
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory) / "c"
        write_corpus(prefix, dtype, [np.arange(length) for length in lengths])
        index, data = bytearray(prefix.with_suffix(".idx").read_bytes()), prefix.with_suffix(".bin").read_bytes()
    for at, byte in draw(st.lists(st.tuples(st.integers(0, len(index) - 1), st.integers(0, 255)), max_size=3)):
        index[at] = byte
    keep = draw(st.one_of(st.just(len(index)), st.integers(0, len(index))))
    data = data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]
    return bytes(index[:keep]), data + draw(st.binary(max_size=3))


@st.composite
def plausible_corpora(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw an index with a good header over arbitrary numbers."""
    sequences, entries = draw(counts), draw(counts)
    code = draw(st.integers(0, 9))
    lengths = draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=min(sequences, 4), max_size=min(sequences, 4)))
    numbers = st.one_of(st.integers(-2, 8), st.integers(-(2**63), 2**63 - 1))
    body = draw(st.lists(numbers, min_size=4, max_size=8))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, sequences, entries)
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    whole = 34 + 12 * min(sequences, 4) + 8 * min(entries, 4)
    return (index + struct.pack(f"<{len(body)}q", *body))[:whole], draw(st.binary(max_size=40))


@settings(max_examples=500, deadline=None)
@given(st.one_of(written_corpora(), plausible_corpora(), st.tuples(st.binary(max_size=120), st.binary(max_size=20))))
@example((b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 0, 1) + struct.pack("<q", 0), b""))
@example((b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 0, 0), b""))
def test_any_bytes_are_a_corpus_or_a_user_error(corpus: tuple[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory) / "c"
        prefix.with_suffix(".idx").write_bytes(corpus[0])
        prefix.with_suffix(".bin").write_bytes(corpus[1])
        try:
            opened = IndexedCorpus(prefix)
        except UserError:
            return
    # What was accepted covers the data exactly: every document can be read, and nothing beyond the file is.
    documents = [opened.document(number) for number in range(opened.num_documents)]
    whole = np.concatenate(documents) if documents else np.zeros(0, opened.dtype)
    assert whole.astype(opened.dtype).tobytes() == corpus[1]


@settings(max_examples=500, deadline=None)
@given(st.one_of(written_corpora(), plausible_corpora()), st.integers(1, 4))
@example((OUT_OF_RANGE, bytes(8)), 1)
def test_a_trusted_index_is_read_within_the_file_or_refused(corpus: tuple[bytes, bytes], block: int) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        patched.setattr(indexed, "_BLOCK", block)
        prefix = Path(directory) / "c"
        prefix.with_suffix(".idx").write_bytes(corpus[0])
        prefix.with_suffix(".bin").write_bytes(corpus[1])
        try:
            opened = IndexedCorpus(prefix, trusted=True)
        except UserError:
            return
    for number in range(opened.num_documents):
        try:
            document = opened.document(number)
        except UserError:
            continue
        assert len(document) == opened.start_of(number + 1) - opened.start_of(number)
