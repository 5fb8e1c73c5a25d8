"""Merging and splitting corpora: tokens move as they are, in whole documents, without being looked at."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaqk.data.files import os_errors_named
from megaqk.data.indexed import IndexedCorpus, data_path
from megaqk.data.journal import partial_index_path, partial_path
from megaqk.data.manifest import Manifest, measured, read_manifest
from megaqk.data.publishing import publish
from megaqk.data.splits import document_bounds
from megaqk.data.writer import IndexPart, write_index
from megaqk.errors import UserError


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


def assemble(
    prefix: Path, pieces: Sequence[Piece], *, note: dict[str, Any], overwrite: bool = False
) -> Manifest | None:
    """Write a corpus of the pieces' documents, in order.

    Args:
        prefix: Path of the corpus to write, without extension.
        pieces: What it holds; at least one.
        note: What its manifest says of the source.
        overwrite: Replace what is there.

    Returns:
        Its manifest; None where a piece's corpus has none, and so its tokenizer is unknown.

    Raises:
        UserError: The pieces do not go together, the output exists, or the operating system refused.
    """
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
            skipped={},
            data=measured(partial_path(prefix), threads=os.cpu_count() or 1),
            index=measured(partial_index_path(prefix)),
        )
    publish(prefix, written)
    return written


def _origin(corpus: IndexedCorpus) -> dict[str, Any]:
    manifest = read_manifest(corpus.prefix)
    return {"corpus": corpus.prefix.name, "data": manifest.data.checksum if manifest else None}


def merge(prefix: Path, corpora: Sequence[IndexedCorpus], *, overwrite: bool = False) -> Manifest | None:
    """Write one corpus of all documents of `corpora`, in order; see `assemble`."""
    pieces = [Piece(corpus, 0, corpus.num_documents) for corpus in corpora]
    return assemble(prefix, pieces, note={"merged": [_origin(corpus) for corpus in corpora]}, overwrite=overwrite)


def split(
    prefixes: Sequence[Path], corpus: IndexedCorpus, fractions: Sequence[float], *, overwrite: bool = False
) -> list[Manifest | None]:
    """Write a corpus for each fraction of the documents, in order; see `assemble`."""
    bounds = document_bounds(corpus.num_documents, fractions)
    return [
        assemble(
            prefix,
            [Piece(corpus, first, last)],
            note={"split": _origin(corpus), "documents": [first, last]},
            overwrite=overwrite,
        )
        for prefix, first, last in zip(prefixes, bounds[:-1], bounds[1:], strict=True)
    ]
