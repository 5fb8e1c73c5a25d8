"""Merging and splitting corpora: tokens move as they are, in whole documents, without being looked at."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megaqk.corpus.inspection import check_whole
from megaqk.corpus.writer import IndexPart, partial_files, publish, write_index
from megaqk.data.checksum import measured
from megaqk.data.indexed import IndexedCorpus, data_path
from megaqk.data.manifest import Manifest, read_manifest
from megaqk.data.splits import document_bounds
from megaqk.data.verification import sizes_match
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named


class Piece(NamedTuple):
    """Documents [first, last) of a corpus, and the corpus' manifest."""

    corpus: IndexedCorpus
    first: int
    last: int
    manifest: Manifest | None

    @property
    def tokens(self) -> npt.NDArray[Any]:
        """Its tokens, a view of the mapped file."""
        return self.corpus.tokens[self.corpus.start_of(self.first) : self.corpus.start_of(self.last)]

    def sequences(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the lengths of its sequences and the boundaries of its documents."""
        documents = self.corpus.documents[self.first : self.last + 1]
        return self.corpus.lengths[documents[0] : documents[-1]], documents

    def origin(self) -> dict[str, Any]:
        """What a manifest says of where it comes from."""
        return {"corpus": self.corpus.prefix.name, "data": self.manifest.data.checksum if self.manifest else None}


def _check_output(prefix: Path, pieces: Sequence[Piece], *, overwrite: bool) -> None:
    # What can be refused before anything is read or written.
    if data_path(prefix).exists() and not overwrite:
        raise UserError(f"{data_path(prefix)}: exists: choose another output or overwrite it")
    first = pieces[0].corpus
    known = [(piece.corpus.path, piece.manifest) for piece in pieces if piece.manifest is not None]
    for piece in pieces:
        if piece.corpus.dtype != first.dtype:
            raise UserError(f"{piece.corpus.path}: holds {piece.corpus.dtype} tokens, {first.path} {first.dtype}")
    for path, manifest in known:
        if manifest.tokenizer_sha256 != known[0][1].tokenizer_sha256:
            raise UserError(f"{path}: was made with another tokenizer than the other corpora")
        if manifest.eod_id != known[0][1].eod_id:
            raise UserError(f"{path}: its documents end with another token than in the other corpora")


def _assemble(prefix: Path, pieces: Sequence[Piece], note: dict[str, Any], skipped: dict[str, int]) -> Manifest | None:
    # Writes a corpus of the pieces' documents, in order; where one has no manifest, its tokenizer is unknown.
    dtype, partial = pieces[0].corpus.dtype, partial_files(prefix)
    with os_errors_named(prefix):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with partial.data.open("wb") as target:
            for piece in pieces:
                target.write(piece.tokens.data)
            os.fsync(target.fileno())
    write_index(partial.idx, dtype, [IndexPart(*piece.sequences()) for piece in pieces])
    written, model = None, pieces[0].manifest
    if model is not None and all(piece.manifest is not None for piece in pieces):
        written = model.model_copy(
            update={
                "source": note,
                "documents": sum(piece.last - piece.first for piece in pieces),
                "tokens": sum(len(piece.tokens) for piece in pieces),
                "skipped": skipped,
                "data": measured(partial.data, threads=os.cpu_count() or 1),
                "index": measured(partial.idx),
            }
        )
    publish(prefix, written)
    return written


def merge(prefix: Path, corpora: Sequence[IndexedCorpus], *, overwrite: bool = False) -> Manifest | None:
    """Write one corpus of all documents of `corpora`, in order.

    Returns:
        Its manifest; None where a corpus has none, and so its tokenizer is unknown.
    """
    pieces = [Piece(corpus, 0, corpus.num_documents, read_manifest(corpus.prefix)) for corpus in corpora]
    _check_output(prefix, pieces, overwrite=overwrite)
    # What is written gets checksums of its own, and they would vouch for damage copied from an input.
    for piece in pieces:
        check_whole(piece.corpus, piece.manifest)
    skipped = sum((Counter(piece.manifest.skipped) for piece in pieces if piece.manifest), Counter[str]())
    return _assemble(prefix, pieces, {"merged": [piece.origin() for piece in pieces]}, dict(skipped))


def split(
    prefixes: Sequence[Path], corpus: IndexedCorpus, fractions: Sequence[float], *, overwrite: bool = False
) -> None:
    """Write a corpus for each fraction of the documents, in order.

    Parts that an earlier call finished are kept. How many documents were left out is known of the whole alone, so
    that is in the parts' notes.
    """
    manifest = read_manifest(corpus.prefix)
    bounds = itertools.pairwise(document_bounds(corpus.num_documents, fractions))
    parts: list[tuple[Path, Piece, dict[str, Any]]] = []
    for prefix, (first, last), fraction in zip(prefixes, bounds, fractions, strict=True):
        piece = Piece(corpus, first, last, manifest)
        if first == last:
            raise UserError(f"{prefix}: would be empty: {fraction:g} of {corpus.num_documents} documents is none")
        if prefix.resolve() == corpus.prefix.resolve():
            raise UserError(f"{prefix}: is what is to be split: choose another output")
        origin = piece.origin() | {"skipped": manifest.skipped if manifest else {}}
        note = {"split": origin, "documents": [first, last]}
        if overwrite or not _is_there(prefix, piece, note):
            _check_output(prefix, [piece], overwrite=overwrite)
            parts.append((prefix, piece, note))
    if parts:
        check_whole(corpus, manifest)
    for prefix, piece, note in parts:
        _assemble(prefix, [piece], note, {})


def _is_there(prefix: Path, piece: Piece, note: dict[str, Any]) -> bool:
    # The data gets its name last: what bears it is whole.
    if not data_path(prefix).exists():
        return False
    try:
        manifest = read_manifest(prefix)
        if manifest is not None:
            return manifest.source == note and sizes_match(prefix, manifest)
        made, (lengths, documents) = IndexedCorpus(prefix), piece.sequences()
        return (
            piece.manifest is None
            and np.array_equal(made.lengths, lengths)
            and np.array_equal(made.documents, documents - documents[0])
            and np.array_equal(made.tokens, piece.tokens)
        )
    except UserError:
        return False
