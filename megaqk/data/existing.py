"""Corpora that the user brings: opened, and held against their manifests and the tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaqk.config.data import DataConfig
from megaqk.corpus.inspection import check_tokens
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.manifest import Manifest, check_counts, check_sizes, read_manifest
from megaqk.data.packing import check_ends
from megaqk.data.tokenizer import Tokenizer, load_tokenizer
from megaqk.errors import UserError
from megaqk.runtime.files import sha256_of

# Every rank looks at so many tokens of a given corpus, spread over the whole: all of a small one, a tenth of a second.
_TOKENS_CHECKED = 10**7


@dataclass(frozen=True)
class PreparedData:
    """A tokenizer and a corpus made with it.

    Attributes:
        tokenizer: The tokenizer file; None where a corpus was given whose manifest stands in for it.
        corpora: Prefix of the corpus, or of each of data.sources in their order.
        vocab_size: Ids of the tokenizer, without padding for tensor parallelism.
        eod_id: The id that ends every document.
    """

    tokenizer: Path | None
    corpora: tuple[Path, ...]
    vocab_size: int
    eod_id: int


def open_given(prefixes: tuple[Path, ...], config: DataConfig) -> PreparedData:
    """Return corpora that exist, after checking what can be checked in moments.

    Args:
        prefixes: The corpora, without suffixes.
        config: The `data` section, for its tokenizer and whether documents are kept apart.

    Raises:
        UserError: A corpus or the tokenizer is missing, damaged, or does not fit the others.
    """
    manifests = [read_manifest(prefix) for prefix in prefixes]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        if manifest is not None:
            check_sizes(prefix, manifest)
    if config.tokenizer is None:
        manifest = manifests[0]
        if manifest is None:
            raise UserError(f"data.tokenizer = null: must be given: {prefixes[0]} has no manifest that describes one")
        prepared = PreparedData(None, prefixes, manifest.vocab_size, manifest.eod_id)
    else:
        tokenizer = load_tokenizer(config.tokenizer, config.eod_token)
        checksum = sha256_of(tokenizer.path)
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            if manifest is not None and manifest.tokenizer_sha256 != checksum:
                raise UserError(
                    f"data.tokenizer = {config.tokenizer}: must be the {manifest.tokenizer} that made {prefix}, "
                    "its checksum differs from the manifest's"
                )
        eod_id = _agreed_end(tokenizer, prefixes, manifests, config.eod_token)
        prepared = PreparedData(tokenizer.path, prefixes, tokenizer.vocab_size, eod_id)
    # A manifest may be wrong and a file damaged since: better known now than at some step.
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        corpus = IndexedCorpus(prefix, trusted=manifest is not None)
        if manifest is not None:
            check_counts(corpus, manifest)
        check_tokens(corpus, prepared.vocab_size, at_most=_TOKENS_CHECKED)
        if config.separate_documents:
            check_ends(corpus, prepared.eod_id)
    return prepared


def _agreed_end(
    tokenizer: Tokenizer, prefixes: Sequence[Path], manifests: Sequence[Manifest | None], eod_token: str | None
) -> int:
    # Which token was named when a corpus was prepared need not be said again: its manifest knows the id.
    known = [(prefix, one.eod_id) for prefix, one in zip(prefixes, manifests, strict=True) if one is not None]
    eod_id = tokenizer.eod_id if eod_token is not None or not known else known[0][1]
    for prefix, made_with in known:
        if made_with != eod_id:
            raise UserError(
                f"data.eod_token = {'null' if eod_token is None else eod_token}: the documents of {prefix} end with "
                f"token {made_with} {tokenizer.piece(made_with)!r}, must be {eod_id} {tokenizer.piece(eod_id)!r} as "
                f"{'in the other corpora' if eod_token is None else 'named'}"
            )
    return eod_id
