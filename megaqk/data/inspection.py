"""What `data inspect` and `tokenizer inspect` print."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from megaqk.data.files import sha256_of
from megaqk.data.indexed import IndexedCorpus, data_path, index_path
from megaqk.data.manifest import Manifest, check_counts, measured, read_manifest
from megaqk.data.tokenizer import Tokenizer
from megaqk.errors import UserError

_BLOCK = 1 << 24
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
    # Where each sequence starts, and where the last one ends; documents are runs of sequences.
    starts = np.append(corpus.offsets, corpus.num_tokens * corpus.dtype.itemsize) // corpus.dtype.itemsize
    lengths = np.diff(starts[corpus.documents])
    lines = [
        f"documents        {corpus.num_documents:,}",
        f"tokens           {corpus.num_tokens:,} ({corpus.dtype.name})",
    ]
    if corpus.num_documents:
        low, median, high, longest = np.percentile(lengths, [0, 50, 95, 100], method="nearest")
        lines.append(
            f"document length  mean {lengths.mean():,.1f}, shortest {low:,}, median {median:,}, 95 % {high:,}, "
            f"longest {longest:,}; {int((lengths == 0).sum()):,} empty"
        )
    manifest = read_manifest(corpus.prefix)
    if manifest is None:
        return [*lines, "manifest         none"]
    lines.append(
        f"tokenizer        {manifest.tokenizer}, {manifest.vocab_size:,} ids, end of document {manifest.eod_id}, "
        f"sha256 {manifest.tokenizer_sha256[:16]}"
    )
    return [*lines, f"left out         {_left_out(manifest)}"]


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
