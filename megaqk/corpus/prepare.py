"""From the `data` section to a tokenizer and a corpus on disk, made on first use."""

import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path

from megaqk.config.data import DataConfig
from megaqk.corpus.build import build_corpus
from megaqk.corpus.encoding import Recipe, available_cores
from megaqk.corpus.lanes import iterate_texts
from megaqk.corpus.sources import Source, find_sources
from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.data.checksum import block_checksum, sampled_checksum
from megaqk.data.existing import PreparedData, open_given
from megaqk.data.indexed import IndexedCorpus, data_path, index_path
from megaqk.data.manifest import FORMAT, Manifest, check_counts, manifest_path, read_manifest, sizes_match
from megaqk.data.tokenizer import load_tokenizer
from megaqk.errors import UserError
from megaqk.runtime.agreement import Solo
from megaqk.runtime.files import exclusive_lock, os_errors_named, sha256_of, written_whole

BUILTIN = "builtin"
_SMALL_BYTES = 32 << 20
# A prepared file up to this size is held against its checksum at each start; of larger ones a sample is.
_WHOLE_BYTES = 256 << 20
# More text makes the trainer slower, not its vocabulary better.
_SAMPLE_LINES = 2_000_000


def prepare(config: DataConfig) -> PreparedData:
    """Return the data of a configuration, making what is missing.

    Any number of processes may call this at once: one of them works, the others wait and find its result.

    Raises:
        UserError: The text, the tokenizer or the corpus is missing, malformed or does not fit the others.
    """
    if config.corpus is not None:
        return open_given((Path(config.corpus),), config)
    if config.sources is not None:
        return open_given(tuple(Path(source.corpus) for source in config.sources), config)
    assert config.text is not None, "DataConfig asks for exactly one of corpus, sources and text"
    patterns = [str(builtin_file())] if config.text == BUILTIN else [config.text]
    sources = find_sources(patterns, key="data.text", text_field=config.text_field)
    key = _key(config, sources)
    directory = Path(config.cache_dir) / key
    for path in (Path(config.cache_dir), directory):
        if path.exists() and not path.is_dir():
            raise UserError(f"data.cache_dir = {config.cache_dir}: {path} must be a directory: remove that file")
    found = _find(directory, config.eod_token)
    if found is None:
        with exclusive_lock(Path(config.cache_dir) / f"{key}.lock"):
            # Another process may have made it while we waited.
            found = _find(directory, config.eod_token) or _make(config, sources, directory)
    return found


def builtin_file() -> Path:
    """Return the path of the shipped text."""
    return Path(str(resources.files("megaqk.corpus") / "assets" / "english.jsonl.xz"))


def _key(config: DataConfig, sources: list[Source]) -> str:
    # Times and sizes stand in for the contents: a rerun must not read terabytes to learn that nothing changed. The
    # shipped text is named by its checksum, so that every installation has the same key.
    shipped = config.text == BUILTIN
    recipe = {
        "format": FORMAT,
        "text": sha256_of(builtin_file()) if shipped else [source.state() for source in sources],
        "tokenizer": config.vocab_size if config.tokenizer is None else sha256_of(Path(config.tokenizer)),
        "skip_bad": config.bad_documents == "skip",
        **({} if config.eod_token is None else {"eod_token": config.eod_token}),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _find(directory: Path, eod_token: str | None) -> PreparedData | None:
    prefix = directory / "corpus"
    try:
        manifest = read_manifest(prefix)
    except UserError:
        return None
    if manifest is None or not sizes_match(prefix, manifest):
        return None
    tokenizer = directory / manifest.tokenizer
    if not tokenizer.is_file() or sha256_of(tokenizer) != manifest.tokenizer_sha256:
        return None
    if not _contents_match(prefix, manifest) or not _numbers_match(prefix, manifest, tokenizer, eod_token):
        return None
    return PreparedData(tokenizer, (prefix,), manifest.vocab_size, manifest.eod_id)


def _contents_match(prefix: Path, manifest: Manifest) -> bool:
    for path, contents in ((data_path(prefix), manifest.data), (index_path(prefix), manifest.index)):
        if contents.size <= _WHOLE_BYTES:
            good = block_checksum(path, threads=4) == contents.checksum
        else:
            # It is written last, so it may be missing; `data inspect --verify` reads all.
            sample = _sample_path(path)
            with os_errors_named(sample):
                good = not sample.exists() or sample.read_bytes() == sampled_checksum(path).encode()
        if not good:
            return False
    return True


def _numbers_match(prefix: Path, manifest: Manifest, tokenizer: Path, eod_token: str | None) -> bool:
    # The manifest has no checksum of its own.
    try:
        check_counts(IndexedCorpus(prefix, trusted=True), manifest)
        loaded = load_tokenizer(tokenizer, eod_token)
        return (loaded.vocab_size, loaded.eod_id) == (manifest.vocab_size, manifest.eod_id)
    except UserError:
        return False


def _sample_path(path: Path) -> Path:
    return path.with_name(path.name + ".sample")


def _make(config: DataConfig, sources: list[Source], directory: Path) -> PreparedData:
    # Each step is whole or absent and the manifest comes last, so what a killed process leaves is gone on with.
    skip_bad = config.bad_documents == "skip"
    given = None if config.tokenizer is None else Path(config.tokenizer)
    model_path = directory / ("tokenizer.model" if given is None else f"tokenizer{given.suffix}")
    with os_errors_named(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if manifest_path(directory / "corpus").exists():
            # It was finished once and has been damaged since: nothing of it is to be trusted.
            shutil.rmtree(directory)
            directory.mkdir()
    if given is not None:
        with written_whole(model_path) as beside, os_errors_named(given):
            beside.write_bytes(given.read_bytes())
    elif not _opens(model_path):
        model = train_sentencepiece(
            iterate_texts(sources, skip_bad=skip_bad),
            vocab_size=config.vocab_size,
            sample_lines=_SAMPLE_LINES,
            vocab_size_key="data.vocab_size",
            input_key=f"data.text = {config.text}",
        )
        with written_whole(model_path) as beside:
            beside.write_bytes(model)
    paths = [Path(source.name) for source in sources]
    small = all(path.is_file() for path in paths) and sum(path.stat().st_size for path in paths) < _SMALL_BYTES
    build_corpus(
        sources,
        directory / "corpus",
        Recipe(model_path, config.text_field, skip_bad, config.eod_token),
        comm=Solo(),
        # Starting processes takes longer than a small text does.
        workers=1 if small else available_cores(),
        overwrite=True,
    )
    for path in (data_path(directory / "corpus"), index_path(directory / "corpus")):
        if path.stat().st_size > _WHOLE_BYTES:
            with written_whole(_sample_path(path)) as beside:
                beside.write_text(sampled_checksum(path))
    made = _find(directory, config.eod_token)
    assert made is not None, f"{directory / 'corpus'} was just written"
    return made


def _opens(model_path: Path) -> bool:
    try:
        load_tokenizer(model_path)
    except UserError:
        return False
    return True


def open_data(config, comm):  # type: ignore
    from megaqk.data.splits import open_splits

    prepared = prepare(config.data)
    return prepared, open_splits(
        prepared,
        config.data,
        sequence_length=config.training.sequence_length,
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
    )


def prepares_quickly(data):  # type: ignore
    return data.text is None or data.text == "builtin" or Path(data.text).stat().st_size < (32 << 20)
