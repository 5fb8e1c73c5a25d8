"""Corpora that exist: opened, and held against their manifests and the tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaqk.config.data import DataConfig
from megaqk.data.checksum import share_of
from megaqk.data.indexed import IndexedCorpus, index_path
from megaqk.data.manifest import Manifest, read_manifest
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.data.verification import check_counts, check_ends, check_probes, check_sizes, check_tokenizer, check_tokens
from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, Solo, each

# The job looks at so many tokens of a corpus at its start, spread over the whole: a tenth of a second for one process.
_TOKENS_CHECKED = 10**7
# An index up to this size is checked entry by entry where the manifest's probes vouch for it.
_LARGE_INDEX_BYTES = 1 << 28


@dataclass(frozen=True)
class PreparedData:
    """A tokenizer and a corpus made with it."""

    tokenizer: Path | None  # None where a corpus was given whose manifest stands in for it
    corpora: tuple[Path, ...]  # prefix of the corpus, or of each of data.sources in their order
    vocab_size: int  # without padding for tensor parallelism
    eod_id: int


def open_existing(prefixes: tuple[Path, ...], config: DataConfig, comm: Comm = Solo()) -> PreparedData:
    """Return corpora that exist, after checking what can be checked in moments; the ranks of `comm` divide the reading.

    Raises:
        UserError: A corpus or the tokenizer is missing, damaged, or does not fit the others; on every rank.
    """
    return each(comm, lambda: _checked(prefixes, config, share_of(comm)))


def _checked(prefixes: tuple[Path, ...], config: DataConfig, share: slice) -> PreparedData:
    manifests = [read_manifest(prefix) for prefix in prefixes]
    prepared = _fitted(prefixes, manifests, config)
    # A manifest may be wrong and a file damaged since: better known now than at some step.
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        if manifest is not None:
            check_sizes(prefix, manifest)
        probed = manifest is not None and manifest.index.probes is not None
        large = probed and index_path(prefix).stat().st_size > _LARGE_INDEX_BYTES
        corpus = IndexedCorpus(prefix, trusted=share.start > 0 or large)
        if manifest is not None:
            check_counts(corpus, manifest)
        check_tokens(corpus, prepared.vocab_size, at_most=_TOKENS_CHECKED, share=share)
        if config.separate_documents:
            check_ends(corpus, prepared.eod_id, share=share)
        if manifest is not None:
            check_probes(prefix, manifest, share)
    return prepared


def _fitted(prefixes: tuple[Path, ...], manifests: Sequence[Manifest | None], config: DataConfig) -> PreparedData:
    if config.tokenizer is None:
        manifest = manifests[0]
        if manifest is None:
            raise UserError(f"data.tokenizer = null: must be given: {prefixes[0]} has no manifest that describes one")
        return PreparedData(None, prefixes, manifest.vocab_size, manifest.eod_id)
    tokenizer = load_tokenizer(config.tokenizer, config.eod_token)
    known = [(prefix, one) for prefix, one in zip(prefixes, manifests, strict=True) if one is not None]
    for prefix, manifest in known:
        check_tokenizer(prefix, manifest, tokenizer, "data.tokenizer")
    return PreparedData(tokenizer.path, prefixes, tokenizer.vocab_size, _common_end(tokenizer, known, config.eod_token))


def _common_end(tokenizer: Tokenizer, known: Sequence[tuple[Path, Manifest]], eod_token: str | None) -> int:
    # Which token was named when a corpus was prepared need not be said again: its manifest knows the id.
    eod_id = tokenizer.eod_id if eod_token is not None or not known else known[0][1].eod_id
    for prefix, manifest in known:
        if manifest.eod_id != eod_id:
            raise UserError(
                f"data.eod_token = {'null' if eod_token is None else eod_token}: the documents of {prefix} end with "
                f"token {manifest.eod_id} {tokenizer.piece(manifest.eod_id)!r}, must be {eod_id} "
                f"{tokenizer.piece(eod_id)!r} as {'in the other corpora' if eod_token is None else 'named'}"
            )
    return eod_id
