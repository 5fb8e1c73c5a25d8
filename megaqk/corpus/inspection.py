"""What `data inspect` and `tokenizer inspect` print."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megaqk.data.indexed import IndexedCorpus, data_path, index_path
from megaqk.data.manifest import Manifest, check_counts, measured, read_manifest
from megaqk.data.tokenizer import Tokenizer
from megaqk.errors import UserError
from megaqk.runtime.files import sha256_of

_BLOCK = 1 << 24
_DOCUMENTS = 1 << 20
_SAMPLED_BLOCKS = 1024
_SHOWN_CHARACTERS = 300


def check_tokenizer(corpus: IndexedCorpus, tokenizer: Tokenizer) -> None:
    """Hold a tokenizer against the manifest, or where there is none its vocabulary against a sample of the tokens.

    Raises:
        UserError: The corpus was made with another.
    """
    manifest = read_manifest(corpus.prefix)
    if manifest is None:
        check_tokens(corpus, tokenizer.vocab_size, at_most=_BLOCK)
    elif manifest.tokenizer_sha256 != sha256_of(tokenizer.path):
        raise UserError(
            f"--tokenizer = {tokenizer.path}: must be the {manifest.tokenizer} that made {corpus.prefix}, "
            "its checksum differs from the manifest's"
        )


def describe_corpus(corpus: IndexedCorpus) -> list[str]:
    """Return lines with the counts and the distribution of document lengths."""
    lines = [
        f"documents        {corpus.num_documents:,}",
        f"tokens           {corpus.num_tokens:,} ({corpus.dtype.name})",
    ]
    if corpus.num_documents:
        blocks = [(int(one.min()), int(one.max()), int((one == 0).sum())) for one in _document_lengths(corpus)]
        shortest, longest = min(block[0] for block in blocks), max(block[1] for block in blocks)
        empty = sum(block[2] for block in blocks)
        median, high = _ranked_length(corpus, 0.5, longest), _ranked_length(corpus, 0.95, longest)
        lines.append(
            f"document length  mean {corpus.num_tokens / corpus.num_documents:,.1f}, shortest {shortest:,}, "
            f"median {median:,}, 95 % {high:,}, longest {longest:,}; {empty:,} empty"
        )
    manifest = read_manifest(corpus.prefix)
    if manifest is None:
        return [*lines, "manifest         none"]
    lines.append(
        f"tokenizer        {manifest.tokenizer}, {manifest.vocab_size:,} ids, end of document {manifest.eod_id}, "
        f"sha256 {manifest.tokenizer_sha256[:16]}"
    )
    return [*lines, f"left out         {_left_out(manifest)}"]


def _document_lengths(corpus: IndexedCorpus) -> Iterator[npt.NDArray[np.int64]]:
    # In blocks: a corpus may have more documents than there is memory for an array of their lengths.
    for begin in range(0, corpus.num_documents, _DOCUMENTS):
        # Documents are runs of sequences; one past the last sequence is where the tokens end.
        sequences = corpus.documents[begin : begin + _DOCUMENTS + 1]
        starts = np.full(len(sequences), corpus.num_tokens, dtype=np.int64)
        inside = sequences < corpus.num_sequences
        starts[inside] = corpus.offsets[sequences[inside]] // corpus.dtype.itemsize
        yield np.diff(starts)


def _ranked_length(corpus: IndexedCorpus, share: float, longest: int) -> int:
    # The length below which `share` of the lengths lie, digit by digit in base 65536 from the top: a pass over the
    # lengths counts by their next digit those that begin with the digits found so far. Nothing has to be sorted.
    rank, found = round((corpus.num_documents - 1) * share), 0
    for shift in range((max(longest.bit_length(), 1) - 1) // 16 * 16, -1, -16):
        counts = np.zeros(1 << 16, dtype=np.int64)
        for lengths in _document_lengths(corpus):
            digits = lengths >> shift
            counts += np.bincount(digits[digits >> 16 == found] & 0xFFFF, minlength=1 << 16)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit - 1]) if digit else 0
        found = found << 16 | digit
    return found


def _left_out(manifest: Manifest) -> str:
    whole = manifest.source.get("split")
    skipped, whose = manifest.skipped, ""
    if not skipped and isinstance(whole, dict) and isinstance(whole.get("skipped"), dict):
        skipped, whose = whole["skipped"], " (of the corpus that this is a part of)"
    # A note is free in form.
    skipped = {reason: count for reason, count in skipped.items() if isinstance(count, int)}
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    return f"{counts}{whose}" if counts else "nothing"


def verify_corpus(corpus: IndexedCorpus, *, vocab_size: int | None) -> list[str]:
    """Read all of a corpus, and return a line for each thing found good.

    Args:
        corpus: The corpus.
        vocab_size: Ids of its tokenizer; None takes the manifest's.

    Raises:
        UserError: A checksum differs from the manifest's, or a token is outside the vocabulary.
    """
    manifest = read_manifest(corpus.prefix)
    good = []
    if manifest is not None:
        check_counts(corpus, manifest)
        verify_files(corpus.prefix, manifest)
        good.append("checksums        as in the manifest")
        vocab_size = vocab_size or manifest.vocab_size
    if vocab_size is not None:
        check_tokens(corpus, vocab_size)
        good.append(f"tokens           all in [0, {vocab_size:,})")
    return good


def verify_files(prefix: Path, manifest: Manifest) -> None:
    """Read both files and raise a `UserError` that names the one whose checksum is not the manifest's."""
    for path, contents in ((data_path(prefix), manifest.data), (index_path(prefix), manifest.index)):
        if measured(path, threads=os.cpu_count() or 1) != contents:
            raise UserError(f"{path}: its checksum is not the manifest's: it was changed or damaged after it was made")


def check_tokens(corpus: IndexedCorpus, vocab_size: int, *, at_most: int | None = None) -> None:
    """Read every token, or about `at_most` of them in blocks spread over the corpus.

    Raises:
        UserError: One is outside [0, vocab_size); the message says which and where.
    """
    size = _BLOCK if at_most is None or corpus.num_tokens <= at_most else max(at_most // _SAMPLED_BLOCKS, 1)
    stride = _BLOCK if size == _BLOCK else corpus.num_tokens // _SAMPLED_BLOCKS
    for begin in range(0, corpus.num_tokens, stride):
        block = corpus.tokens[begin : begin + size]
        if int(block.max()) >= vocab_size or int(block.min()) < 0:
            at = begin + int(np.argmax((block >= vocab_size) | (block < 0)))
            raise UserError(
                f"{data_path(corpus.prefix)}: token {int(corpus.tokens[at])} at position {at} is outside the "
                f"vocabulary, [0, {vocab_size})"
            )


def first_documents(corpus: IndexedCorpus, tokenizer: Tokenizer, count: int) -> list[str]:
    """Return the beginnings of the first documents, decoded, a line each."""
    shown = []
    for number in range(min(count, corpus.num_documents)):
        tokens = corpus.document(number)[:_SHOWN_CHARACTERS]
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocab_size:
            raise UserError(
                f"{data_path(corpus.prefix)}: document {number} has tokens outside the vocabulary of "
                f"{tokenizer.path}, [0, {tokenizer.vocab_size})"
            )
        text = tokenizer.decode(tokens)
        shown.append(f"document {number}: {text[:_SHOWN_CHARACTERS]!r}")
    return shown


def describe_tokenizer(tokenizer: Tokenizer, *, pieces: int) -> list[str]:
    """Return lines with the size, the end of document and a sample of pieces spread over the vocabulary."""
    sample = np.unique(np.linspace(0, tokenizer.vocab_size - 1, pieces).astype(np.int64))
    try:
        end = f"{tokenizer.eod_id} {tokenizer.piece(tokenizer.eod_id)!r}"
    except UserError:
        # What it could be is what one looks at the pieces for.
        end = "none with a known name: one must be named with --eod-token or data.eod_token"
    return [
        f"tokenizer        {tokenizer.path.name}, {tokenizer.vocab_size:,} ids",
        f"end of document  {end}",
        *(f"  {token:>8} {tokenizer.piece(token)!r}" for token in map(int, sample)),
    ]


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Return lines with tokens per word and bytes per token on texts, and how much of them the ids do not give back."""
    words = size = tokens = changed = documents = 0
    for text in texts:
        ids = tokenizer.encode(text)
        documents += 1
        words += len(text.split())
        size += len(text.encode())
        tokens += len(ids)
        changed += tokenizer.decode(ids) != text
    if not tokens:
        raise UserError("the text to measure on is empty")
    return [
        f"text             {documents:,} documents, {size:,} bytes, {words:,} words, {tokens:,} tokens",
        f"fertility        {tokens / max(words, 1):.3f} tokens per word, {size / tokens:.3f} bytes per token",
        f"not given back   {changed:,} documents",
    ]
