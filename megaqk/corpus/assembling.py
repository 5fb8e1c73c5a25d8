"""Merging and splitting corpora: tokens move as they are, in whole documents, without being looked at."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaqk.corpus.inspection import verify_files
from megaqk.corpus.journal import partial_index_path, partial_path
from megaqk.corpus.publishing import publish
from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import IndexedCorpus, data_path
from megaqk.data.manifest import Manifest, check_counts, measured, read_manifest, sizes_match
from megaqk.data.splits import document_bounds
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Documents [first, last) of a corpus."""

    corpus: IndexedCorpus
    first: int
    last: int

    @property
    def bounds(self) -> tuple[int, int]:
        """First token and one past the last."""
        return self.corpus.start_of(self.first), self.corpus.start_of(self.last)

    def index_part(self) -> IndexPart:
        """Return this piece's share of an index."""
        documents = self.corpus.documents[self.first : self.last + 1]
        return IndexPart(self.corpus.lengths[documents[0] : documents[-1]], documents)


def _copy(source: int, target: int, offset: int, size: int) -> None:
    # The kernel copies (and where the file system can, shares) the blocks; not every pair of file systems lets it.
    while size:
        try:
            done = os.copy_file_range(source, target, min(size, 1 << 30), offset)
        except OSError:
            data = os.pread(source, min(size, 1 << 24), offset)
            os.lseek(target, 0, os.SEEK_END)
            done = os.write(target, data)
        if not done:
            raise OSError(0, "the source ended early")
        offset, size = offset + done, size - done


def check_pieces(prefix: Path, pieces: Sequence[Piece], *, overwrite: bool) -> list[Manifest | None]:
    """Refuse what `assemble` would before anything is written, and return the manifests of the pieces' corpora."""
    if data_path(prefix).exists() and not overwrite:
        raise UserError(f"{data_path(prefix)}: exists: choose another output or overwrite it")
    manifests = [read_manifest(piece.corpus.prefix) for piece in pieces]
    known = [manifest for manifest in manifests if manifest is not None]
    first = pieces[0].corpus
    for piece in pieces:
        if piece.corpus.dtype != first.dtype:
            raise UserError(f"{piece.corpus.path}: holds {piece.corpus.dtype} tokens, {first.path} {first.dtype}")
    for manifest, piece in zip(manifests, pieces, strict=True):
        if manifest is not None and manifest.tokenizer_sha256 != known[0].tokenizer_sha256:
            raise UserError(f"{piece.corpus.path}: was made with another tokenizer than the other corpora")
        if manifest is not None and manifest.eod_id != known[0].eod_id:
            raise UserError(f"{piece.corpus.path}: its documents end with another token than in the other corpora")
    return manifests


def assemble(
    prefix: Path,
    pieces: Sequence[Piece],
    *,
    note: dict[str, Any],
    skipped: dict[str, int] | None = None,
    overwrite: bool = False,
) -> Manifest | None:
    """Write a corpus of the pieces' documents, in order.

    Args:
        prefix: Path of the corpus to write, without extension.
        pieces: What it holds; at least one.
        note: What its manifest says of the source.
        skipped: Documents left out of it, by reason.
        overwrite: Replace what is there.

    Returns:
        Its manifest; None where a piece's corpus has none, and so its tokenizer is unknown.

    Raises:
        UserError: The pieces do not go together, the output exists, or the operating system refused.
    """
    known = [manifest for manifest in check_pieces(prefix, pieces, overwrite=overwrite) if manifest is not None]
    first = pieces[0].corpus
    with os_errors_named(prefix):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with partial_path(prefix).open("wb") as target:
            for piece in pieces:
                begin, end = piece.bounds
                with data_path(piece.corpus.prefix).open("rb") as source:
                    itemsize = first.dtype.itemsize
                    _copy(source.fileno(), target.fileno(), begin * itemsize, (end - begin) * itemsize)
            os.fsync(target.fileno())
    write_index(partial_index_path(prefix), first.dtype, [piece.index_part() for piece in pieces])
    written = None
    if len(known) == len(pieces):
        written = Manifest(
            source=note,
            tokenizer=known[0].tokenizer,
            tokenizer_sha256=known[0].tokenizer_sha256,
            vocab_size=known[0].vocab_size,
            eod_id=known[0].eod_id,
            documents=sum(piece.last - piece.first for piece in pieces),
            tokens=sum(piece.bounds[1] - piece.bounds[0] for piece in pieces),
            skipped=skipped or {},
            data=measured(partial_path(prefix), threads=os.cpu_count() or 1),
            index=measured(partial_index_path(prefix)),
        )
    publish(prefix, written)
    return written


def _whole(corpus: IndexedCorpus) -> Manifest | None:
    # What is written gets checksums of its own, and they would vouch for damage copied from an input.
    manifest = read_manifest(corpus.prefix)
    if manifest is not None:
        check_counts(corpus, manifest)
        verify_files(corpus.prefix, manifest)
    return manifest


def _origin(corpus: IndexedCorpus, manifest: Manifest | None) -> dict[str, Any]:
    return {"corpus": corpus.prefix.name, "data": manifest.data.checksum if manifest else None}


def merge(prefix: Path, corpora: Sequence[IndexedCorpus], *, overwrite: bool = False) -> Manifest | None:
    """Write one corpus of all documents of `corpora`, in order; see `assemble`.

    Raises:
        UserError: As `assemble`; or a corpus is not what its manifest says.
    """
    pieces = [Piece(corpus, 0, corpus.num_documents) for corpus in corpora]
    # Before all of them are read.
    check_pieces(prefix, pieces, overwrite=overwrite)
    manifests = [_whole(corpus) for corpus in corpora]
    return assemble(
        prefix,
        pieces,
        note={"merged": [_origin(*pair) for pair in zip(corpora, manifests, strict=True)]},
        skipped=dict(sum((Counter(one.skipped) for one in manifests if one is not None), Counter[str]())),
        overwrite=overwrite,
    )


def split(
    prefixes: Sequence[Path], corpus: IndexedCorpus, fractions: Sequence[float], *, overwrite: bool = False
) -> list[Manifest | None]:
    """Write a corpus for each fraction of the documents, in order; see `assemble`.

    Parts that an earlier call finished are kept. How many documents were left out is known of the whole alone, so
    that is in the parts' notes.

    Raises:
        UserError: As `assemble`, before anything is written; a part would be empty, or the corpus is not what its
            manifest says.
    """
    bounds = document_bounds(corpus.num_documents, fractions)
    pieces = [Piece(corpus, first, last) for first, last in itertools.pairwise(bounds)]
    for prefix, piece, fraction in zip(prefixes, pieces, fractions, strict=True):
        if piece.first == piece.last:
            raise UserError(f"{prefix}: would be empty: {fraction:g} of {corpus.num_documents} documents is none")
        if prefix.resolve() == corpus.prefix.resolve():
            raise UserError(f"{prefix}: is what is to be split: choose another output")
    described = read_manifest(corpus.prefix)
    origin = _origin(corpus, described) | {"skipped": described.skipped if described else {}}
    notes = [{"split": origin, "documents": [piece.first, piece.last]} for piece in pieces]
    parts = list(zip(prefixes, pieces, notes, strict=True))
    done = [not overwrite and _is_there(*part) for part in parts]
    for (prefix, piece, _), finished in zip(parts, done, strict=True):
        if not finished:
            check_pieces(prefix, [piece], overwrite=overwrite)
    if not all(done):
        _whole(corpus)
    return [
        read_manifest(prefix) if finished else assemble(prefix, [piece], note=note, overwrite=overwrite)
        for (prefix, piece, note), finished in zip(parts, done, strict=True)
    ]


def _is_there(prefix: Path, piece: Piece, note: dict[str, Any]) -> bool:
    # The data gets its name last: what bears it is whole.
    if not data_path(prefix).exists():
        return False
    try:
        manifest = read_manifest(prefix)
        if manifest is not None:
            return manifest.source == note and sizes_match(prefix, manifest)
        return read_manifest(piece.corpus.prefix) is None and _same_documents(IndexedCorpus(prefix), piece)
    except UserError:
        return False


def _same_documents(corpus: IndexedCorpus, piece: Piece) -> bool:
    (begin, end), whole = piece.bounds, piece.corpus
    documents = whole.documents[piece.first : piece.last + 1]
    return (
        corpus.dtype == whole.dtype
        and _equal(corpus.lengths, whole.lengths[documents[0] : documents[-1]])
        and _equal(corpus.documents, documents, above=int(documents[0]))
        and _equal(corpus.tokens, whole.tokens[begin:end])
    )


def _equal(first: npt.NDArray[Any], second: npt.NDArray[Any], *, above: int = 0) -> bool:
    # In blocks: both are mapped files of any size.
    return len(first) == len(second) and all(
        np.array_equal(first[begin : begin + _BLOCK] + above, second[begin : begin + _BLOCK])
        for begin in range(0, len(first), _BLOCK)
    )
