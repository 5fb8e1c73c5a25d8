"""Holding a corpus against its manifest and its tokenizer; `share` leaves a rank its part of a divided check."""

import os
from pathlib import Path

import numpy as np

from megaqk.data.checksum import ALL, measured, probe_share
from megaqk.data.indexed import IndexedCorpus, data_path
from megaqk.data.manifest import Manifest, manifest_path
from megaqk.data.tokenizer import Tokenizer
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, sha256_of

_BLOCK = 1 << 24
_TOKEN_BLOCKS = 1024
_DOCUMENTS_CHECKED = 2000


def sizes_match(prefix: Path, manifest: Manifest) -> bool:
    """Tell whether both files have the sizes the manifest names; cheap, unlike their checksums."""
    return all(path.is_file() and path.stat().st_size == contents.size for path, contents in manifest.files(prefix))


def check_sizes(prefix: Path, manifest: Manifest) -> None:
    """Raise a `UserError` that names the file whose size is not the manifest's, or that is missing."""
    for path, contents in manifest.files(prefix):
        with os_errors_named(path):
            size = path.stat().st_size
        if size != contents.size:
            raise _changed(prefix, path, f"{size} bytes, {manifest_path(prefix).name} says {contents.size}")


def check_probes(prefix: Path, manifest: Manifest, share: slice = ALL) -> None:
    """Raise a `UserError` that names the file whose probes (see `checksum`), where there are any, have changed."""
    for path, contents in manifest.files(prefix):
        if contents.probes is not None and tuple(probe_share(path, share)) != contents.probes[share]:
            raise _changed(prefix, path, f"holds other bytes than {manifest_path(prefix).name} says")


def _changed(prefix: Path, path: Path, how: str) -> UserError:
    return UserError(
        f"{path}: {how}: it was changed or damaged after it was made; make it again, or remove the manifest of a "
        f"corpus that has been replaced"
    )


def damaged_file(prefix: Path, manifest: Manifest) -> Path | None:
    """Read both files whole and return the one whose checksum is not the manifest's, if any."""
    for path, contents in manifest.files(prefix):
        if measured(path, threads=os.cpu_count() or 1).checksum != contents.checksum:
            return path
    return None


def check_tokenizer(prefix: Path, manifest: Manifest, tokenizer: Tokenizer, key: str) -> None:
    """Raise a `UserError` where the tokenizer, which the user gave as `key`, is not the one that made the corpus."""
    if manifest.tokenizer_sha256 != sha256_of(tokenizer.path):
        raise UserError(
            f"{key} = {tokenizer.path}: must be the {manifest.tokenizer} that made {prefix}, its checksum differs from "
            "the manifest's"
        )


def check_counts(corpus: IndexedCorpus, manifest: Manifest) -> None:
    """Raise a `UserError` where the manifest counts other documents or tokens than its corpus has."""
    for what, has, says in (
        ("documents", corpus.num_documents, manifest.documents),
        ("tokens", corpus.num_tokens, manifest.tokens),
    ):
        if has != says:
            raise UserError(f"{manifest_path(corpus.prefix)}: {what} = {says}: must be {has}, which the corpus has")


def check_tokens(corpus: IndexedCorpus, vocab_size: int, *, at_most: int | None = None, share: slice = ALL) -> None:
    """Read every token, or about `at_most` of them in blocks spread over the corpus."""
    size = stride = _BLOCK
    if at_most is not None:
        stride = max(corpus.num_tokens // _TOKEN_BLOCKS, 1)
        size = min(stride, max(at_most // _TOKEN_BLOCKS, 1))
    for begin in range(0, corpus.num_tokens, stride)[share]:
        block = corpus.tokens[begin : begin + size]
        if int(block.max()) >= vocab_size or int(block.min()) < 0:
            at = begin + int(np.argmax((block >= vocab_size) | (block < 0)))
            raise UserError(
                f"{data_path(corpus.prefix)}: token {int(corpus.tokens[at])} at position {at} is outside the "
                f"vocabulary, [0, {vocab_size})"
            )


def check_ends(corpus: IndexedCorpus, eod_id: int, *, share: slice = ALL) -> None:
    """Look at the last tokens of documents spread over a corpus, of all of a small one; empty documents have none."""
    last = corpus.num_documents - 1
    numbers = np.unique(np.linspace(0, last, min(_DOCUMENTS_CHECKED, last + 1)).astype(np.int64))
    for number in numbers[share].tolist():
        document = corpus.document(number)
        if len(document) and int(document[-1]) != eod_id:
            raise UserError(
                f"data.separate_documents = true: document {number} of {corpus.prefix} ends with token "
                f"{int(document[-1])}, must end with the end-of-document token {eod_id}: make the corpus with it "
                "(Megatron: --append-eod), or name the token that it has in data.eod_token"
            )
