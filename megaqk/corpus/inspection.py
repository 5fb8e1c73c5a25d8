"""What `data inspect` and `tokenizer inspect` print."""

from collections.abc import Iterable

import numpy as np

from megaqk.data.indexed import IndexedCorpus, data_path
from megaqk.data.manifest import Manifest, read_manifest
from megaqk.data.tokenizer import Tokenizer
from megaqk.data.verification import check_counts, check_tokens, damaged_file
from megaqk.errors import UserError

_SHOWN_CHARACTERS = 300


def describe_corpus(corpus: IndexedCorpus) -> list[str]:
    """Return lines with the counts and the distribution of document lengths."""
    lines = [
        f"documents        {corpus.num_documents:,}",
        f"tokens           {corpus.num_tokens:,} ({corpus.dtype.name})",
    ]
    if corpus.num_documents:
        # Documents are runs of sequences; the last ends with the tokens.
        starts = np.append(corpus.offsets // corpus.dtype.itemsize, corpus.num_tokens)[corpus.documents]
        lengths = np.diff(starts)
        low, median, high, longest = np.percentile(lengths, [0, 50, 95, 100], method="nearest").tolist()
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


def check_whole(corpus: IndexedCorpus, manifest: Manifest | None) -> None:
    """Read all of a corpus, and raise a `UserError` where it is not what its manifest, if any, says."""
    if manifest is not None:
        check_counts(corpus, manifest)
        if path := damaged_file(corpus.prefix, manifest):
            raise UserError(f"{path}: its checksum is not the manifest's: it was changed or damaged after it was made")


def verify_corpus(corpus: IndexedCorpus, *, vocab_size: int | None) -> list[str]:
    """Read all of a corpus, whose tokenizer has `vocab_size` ids or the manifest's, and list what was found good."""
    manifest = read_manifest(corpus.prefix)
    good = []
    if manifest is not None:
        check_whole(corpus, manifest)
        good.append("checksums        as in the manifest")
        vocab_size = vocab_size or manifest.vocab_size
    if vocab_size is not None:
        check_tokens(corpus, vocab_size)
        good.append(f"tokens           all in [0, {vocab_size:,})")
    return good


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
        shown.append(f"document {number}: {tokenizer.decode(tokens)[:_SHOWN_CHARACTERS]!r}")
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
