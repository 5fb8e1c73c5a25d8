"""From the `data` section to a tokenizer and a corpus on disk, made on first use."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from megaqk.config.data import DataConfig
from megaqk.data.files import exclusive_lock, os_errors_named, sha256_of, sync_directory, written_whole
from megaqk.data.indexed import data_path, token_dtype
from megaqk.data.manifest import FORMAT, Manifest, files_of, read_manifest, sizes_match, write_manifest
from megaqk.data.sources import find_files, iterate_texts
from megaqk.data.tokenizer import load_tokenizer
from megaqk.data.tokenizer_training import train_sentencepiece
from megaqk.data.writer import tokenize
from megaqk.errors import UserError

BUILTIN = "builtin"


@dataclass(frozen=True)
class PreparedData:
    """A tokenizer and a corpus made with it.

    Attributes:
        tokenizer: The tokenizer file; None where a corpus was given whose manifest stands in for it.
        corpus: Prefix of the corpus.
        vocab_size: Ids of the tokenizer, without padding for tensor parallelism.
        eod_id: The id that ends every document.
    """

    tokenizer: Path | None
    corpus: Path
    vocab_size: int
    eod_id: int


def prepare(config: DataConfig) -> PreparedData:
    """Return the data of a configuration, making what is missing.

    Any number of processes may call this at once: one of them works, the others wait and find its result.

    Raises:
        UserError: The text, the tokenizer or the corpus is missing, malformed or does not fit the others.
    """
    if config.corpus is not None:
        return _given_corpus(Path(config.corpus), config.tokenizer)
    assert config.text is not None, "DataConfig asks for exactly one of corpus and text"
    files = [_builtin_file()] if config.text == BUILTIN else find_files([config.text], key="data.text")
    recipe = _recipe(config, files)
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(config.cache_dir) / key
    found = _find(directory)
    if found is None:
        with exclusive_lock(Path(config.cache_dir) / f"{key}.lock"):
            # Another process may have made it while we waited.
            found = _find(directory) or _make(config, files, recipe, directory)
    return found


def _builtin_file() -> Path:
    return Path(str(resources.files("megaqk.data") / "assets" / "english.jsonl.xz"))


def _recipe(config: DataConfig, files: list[Path]) -> dict[str, Any]:
    # Times and sizes stand in for the contents: a rerun must not read terabytes to learn that nothing changed. The
    # shipped text is named by its checksum, so that every installation has the same key.
    if config.text == BUILTIN:
        described: list[Any] = [BUILTIN, sha256_of(files[0])]
    else:
        described = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    tokenizer: Any = config.vocab_size if config.tokenizer is None else sha256_of(Path(config.tokenizer))
    return {"format": FORMAT, "text": described, "tokenizer": tokenizer}


def _find(directory: Path) -> PreparedData | None:
    prefix = directory / "corpus"
    try:
        manifest = read_manifest(prefix)
    except UserError:
        return None
    tokenizer = directory / "tokenizer.model"
    if manifest is None or manifest.format != FORMAT or not sizes_match(prefix, manifest) or not tokenizer.is_file():
        return None
    return PreparedData(tokenizer, prefix, manifest.vocab_size, manifest.eod_id)


def _make(config: DataConfig, files: list[Path], recipe: dict[str, Any], directory: Path) -> PreparedData:
    work = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    with os_errors_named(directory):
        work.mkdir(parents=True)
    try:
        model_path = work / "tokenizer.model"
        if config.tokenizer is None:
            model = train_sentencepiece(
                iterate_texts(files), vocab_size=config.vocab_size, vocab_size_key="data.vocab_size"
            )
        else:
            model = Path(config.tokenizer).read_bytes()
        with written_whole(model_path) as beside:
            beside.write_bytes(model)
        tokenizer = load_tokenizer(model_path)
        prefix = work / "corpus"
        documents, tokens = tokenize(iterate_texts(files), tokenizer, prefix, token_dtype(tokenizer.vocab_size))
        if not documents:
            raise UserError(f"data.text = {config.text}: holds no text")
        write_manifest(
            prefix,
            Manifest(
                source=recipe,
                tokenizer_sha256=sha256_of(model_path),
                vocab_size=tokenizer.vocab_size,
                eod_id=tokenizer.eod_id,
                documents=documents,
                tokens=tokens,
                files=files_of(prefix),
            ),
        )
        with os_errors_named(directory):
            shutil.rmtree(directory, ignore_errors=True)
            work.rename(directory)
            sync_directory(directory.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made = _find(directory)
    assert made is not None, f"{data_path(directory / 'corpus')} was just written"
    return made


def _given_corpus(prefix: Path, tokenizer_path: str | None) -> PreparedData:
    manifest = read_manifest(prefix)
    if tokenizer_path is None:
        if manifest is None:
            raise UserError(f"data.tokenizer = null: must be given for data.corpus = {prefix}, which has no manifest")
        return PreparedData(None, prefix, manifest.vocab_size, manifest.eod_id)
    tokenizer = load_tokenizer(tokenizer_path)
    if manifest is not None and manifest.tokenizer_sha256 != sha256_of(Path(tokenizer_path)):
        raise UserError(
            f"data.tokenizer = {tokenizer_path}: must be the one that made data.corpus = {prefix}, "
            "its checksum differs from the manifest's"
        )
    return PreparedData(tokenizer.path, prefix, tokenizer.vocab_size, tokenizer.eod_id)
