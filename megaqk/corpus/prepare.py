"""From the `data` section to a tokenizer and a corpus on disk, made on first use, and to a run's samples."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from megaqk.config.data import DataConfig
from megaqk.config.root import Config
from megaqk.corpus.build import build_corpus
from megaqk.corpus.encoding import Recipe, available_cores
from megaqk.corpus.shards import iterate_texts
from megaqk.corpus.sources import Source, find_sources
from megaqk.corpus.tokenizer_training import check_vocab_size, train_sentencepiece
from megaqk.data.existing import PreparedData, open_existing
from megaqk.data.manifest import FORMAT, Manifest, manifest_path, read_manifest
from megaqk.data.splits import Splits, open_splits
from megaqk.data.tokenizer import load_tokenizer
from megaqk.data.verification import sizes_match
from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, Solo, agreed, each
from megaqk.runtime.files import os_errors_named, sha256_of, written_whole
from megaqk.runtime.locks import exclusive_lock

BUILTIN = "builtin"
_SMALL_BYTES = 32 << 20
# More text makes the trainer slower, not its vocabulary better.
_SAMPLE_LINES = 2_000_000


def open_data(config: Config, comm: Comm = Solo()) -> tuple[PreparedData, Splits]:
    """Return the data of a run and its samples, making what is missing; every rank of the job calls this.

    Raises:
        UserError: As `prepare` and `open_splits`, on every rank.
    """
    prepared, training = prepare(config.data, comm), config.training
    keys = {name: getattr(training, name) for name in ("sequence_length", "seed", "global_batch_size")}
    return prepared, each(comm, lambda: open_splits(prepared, config.data, **keys, test=config.evaluation.test))


def prepare(config: DataConfig, comm: Comm = Solo(), *, key: str = "data.text") -> PreparedData:
    """Return the data of a configuration, making what is missing; every rank of the job calls this.

    Rank 0 works for the job. Any number of jobs may do so at once: one of them works, the others find its result. `key`
    is where the user has named the text.

    Raises:
        UserError: The text, the tokenizer or the corpus is missing, malformed or does not fit the others, or a rank
            does not see what rank 0 has prepared; on every rank.
    """
    if config.text is None:
        places = [config.corpus or ""] if config.sources is None else [source.corpus for source in config.sources]
        return open_existing(tuple(map(Path, places)), config, comm)
    made = agreed(comm, lambda: _from_text(config, key) if comm.rank == 0 else None)[0]
    assert made is not None, "rank 0 returns what it has prepared"
    prepared, manifest = made
    prefix = prepared.corpora[0]

    def look() -> None:
        if comm.rank and (read_manifest(prefix) != manifest or not sizes_match(prefix, manifest)):
            raise UserError(
                f"data.cache_dir = {config.cache_dir}: has not the {prefix} that rank 0 has prepared: must be a "
                "directory that all nodes share"
            )

    agreed(comm, look)
    return prepared


def left_to_the_start(config: Config) -> list[str]:
    """Say of each text of a run whose preparation takes more than moments that its start prepares it.

    Raises:
        UserError: As `prepares_quickly`.
    """
    texts = [("data.text", config.data)]
    for number, one in enumerate(config.evaluation.sets):
        keys = {"text": one.text, "corpus": one.corpus, "sources": None}
        texts.append((f"evaluation.sets[{number}].text", config.data.model_copy(update=keys)))
    return [
        f"{key} = {data.text}: is prepared at the start of the run, which refuses what it lacks"
        for key, data in texts
        if not prepares_quickly(data, key)
    ]


def prepares_quickly(config: DataConfig, key: str = "data.text") -> bool:
    """Tell whether `prepare` has nothing to make, or a text so small that it takes moments.

    Raises:
        UserError: What is to be made cannot be: a file is missing, the cache cannot be, or no tokenizer can.
    """
    if config.text is None:
        return True
    sources, directory = _request(config, key)
    if _is_small(sources) or _find(directory, config) is not None:
        return True
    if config.tokenizer is None:
        check_vocab_size(config.vocab_size, "data.vocab_size")
    else:
        _ = load_tokenizer(config.tokenizer, config.eod_token).eod_id
    return False


def builtin_file() -> Path:
    """Return the path of the shipped text."""
    return Path(str(resources.files("megaqk.corpus") / "assets" / "english.jsonl.xz"))


def _request(config: DataConfig, key: str) -> tuple[list[Source], Path]:
    # What is to be prepared, and the directory of the result.
    assert config.text is not None, "the caller has looked"
    patterns = [str(builtin_file())] if config.text == BUILTIN else [config.text]
    sources = find_sources(patterns, key=key, text_field=config.text_field)
    cache = Path(config.cache_dir)
    directory = cache / _key(config, sources)
    for path in (cache, directory):
        if path.exists() and not path.is_dir():
            raise UserError(f"data.cache_dir = {config.cache_dir}: {path} must be a directory: remove that file")
    return sources, directory


def _key(config: DataConfig, sources: Sequence[Source]) -> str:
    # Times and sizes stand in for the contents: a rerun must not read terabytes to learn that nothing changed. The
    # shipped text is named by its checksum, so that every installation has the same key.
    texts = [source.state() for source in sources] if config.text != BUILTIN else sha256_of(builtin_file())
    recipe = {
        "format": FORMAT,
        "text": texts,
        "tokenizer": config.vocab_size if config.tokenizer is None else sha256_of(Path(config.tokenizer)),
        "skip_bad": config.bad_documents == "skip",
        **({} if config.eod_token is None else {"eod_token": config.eod_token}),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _is_small(sources: Sequence[Source]) -> bool:
    paths = [Path(source.name) for source in sources]
    return all(path.is_file() for path in paths) and sum(path.stat().st_size for path in paths) < _SMALL_BYTES


def _from_text(config: DataConfig, key: str) -> tuple[PreparedData, Manifest]:
    sources, directory = _request(config, key)
    found = _find(directory, config)
    if found is None:
        waiting = f"{directory}: another process is preparing {key}, waiting for it to end"
        with exclusive_lock(directory.with_suffix(".lock"), waiting=waiting):
            # Another process may have made it while we waited.
            found = _find(directory, config)
            if found is None:
                _make(config, sources, directory)
                found = _find(directory, config)
    assert found is not None, f"{directory / 'corpus'} was just written"
    return found


def _find(directory: Path, config: DataConfig) -> tuple[PreparedData, Manifest] | None:
    prefix = directory / "corpus"
    try:
        manifest = read_manifest(prefix)
        if manifest is None:
            return None
        tokenizer = load_tokenizer(directory / manifest.tokenizer, config.eod_token)
        found = open_existing((prefix,), config.model_copy(update={"tokenizer": str(tokenizer.path)}))
        # The manifest has no checksum of its own.
        same = (tokenizer.vocab_size, tokenizer.eod_id) == (manifest.vocab_size, manifest.eod_id)
    except UserError:
        return None
    return (found, manifest) if same else None


def _make(config: DataConfig, sources: Sequence[Source], directory: Path) -> None:
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
        load_tokenizer(given)  # by the name that the user gave it
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
    build_corpus(
        sources,
        directory / "corpus",
        Recipe(model_path, config.text_field, skip_bad, config.eod_token),
        comm=Solo(),
        # Starting processes takes longer than a small text does.
        workers=1 if _is_small(sources) else available_cores(),
        overwrite=True,
    )


def _opens(model_path: Path) -> bool:
    try:
        load_tokenizer(model_path)
    except UserError:
        return False
    return True
