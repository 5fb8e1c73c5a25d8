"""The `megaqk tokenizer` and `megaqk data` commands; their arguments are in `arguments`."""

import argparse
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from megaqk.corpus import assembling, inspection
from megaqk.corpus.build import build_corpus
from megaqk.corpus.encoding import Recipe, available_cores
from megaqk.corpus.prepare import BUILTIN, builtin_file
from megaqk.corpus.shards import iterate_texts
from megaqk.corpus.sources import Source, find_sources
from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.manifest import Manifest, read_manifest
from megaqk.data.tokenizer import load_tokenizer
from megaqk.data.verification import check_tokenizer, check_tokens
from megaqk.errors import AGAIN, UserError
from megaqk.runtime.agreement import Comm, Solo, each
from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.runtime.launch import started_by_mpi
from megaqk.runtime.mpi import Mpi
from megaqk.runtime.signals import Interrupted, stop_signals

_SAMPLE_TOKENS = 1 << 24


def train_tokenizer(arguments: argparse.Namespace) -> int:
    """Run `megaqk tokenizer train`."""
    _at_least(1, max_bytes=arguments.max_bytes, vocab_size=arguments.vocab_size)
    _at_least(0, sample_lines=arguments.sample_lines)
    if arguments.output.suffix != ".model":
        raise UserError(f"--output = {arguments.output}: must end in .model")
    model = train_sentencepiece(
        _texts(arguments, arguments.max_bytes),
        vocab_size=arguments.vocab_size,
        kind=arguments.kind,
        special_tokens=arguments.special_token,
        sample_lines=arguments.sample_lines,
        vocab_size_key="--vocab-size",
        input_key=f"input = {' '.join(arguments.input)}",
    )
    with os_errors_named(arguments.output):
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(arguments.output) as path:
        path.write_bytes(model)
    print(f"{arguments.output}: {arguments.kind}, {arguments.vocab_size:,} ids")
    return 0


def inspect_tokenizer(arguments: argparse.Namespace) -> int:
    """Run `megaqk tokenizer inspect`."""
    _at_least(0, pieces=arguments.pieces)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.eod_token)
    print(*inspection.describe_tokenizer(tokenizer, pieces=arguments.pieces), sep="\n")
    if arguments.input:
        print(*inspection.fertility(tokenizer, _texts(arguments)), sep="\n")
    return 0


def prepare_corpus(arguments: argparse.Namespace) -> int:
    """Run `megaqk data prepare`."""
    comm = find_comm(mpi=arguments.mpi)
    try:
        with stop_signals():
            manifest = _prepared(arguments, comm)
    except UserError:
        # All ranks have it; one says it.
        if comm.rank:
            return 2
        raise
    except Interrupted:
        if comm.rank == 0:
            sys.stderr.write(f"{arguments.output}: stopped; the same command continues\n")
            sys.stderr.flush()
        return AGAIN
    except Exception:
        # The others would wait forever for a rank that a defect of ours has ended.
        traceback.print_exc()
        sys.stderr.flush()
        if isinstance(comm, Mpi):
            comm.abort()
        raise
    if comm.rank == 0:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.skipped.items()))
        print(f"{arguments.output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens")
        if left_out:
            print(f"left out: {left_out}")
    return 0


def find_comm(*, mpi: bool) -> Comm:
    """Return the MPI world where asked for or where an MPI launcher started several processes, else `Solo`."""
    return Mpi() if mpi or started_by_mpi() else Solo()


def _prepared(arguments: argparse.Namespace, comm: Comm) -> Manifest:
    def check() -> list[Source]:
        _at_least(1, workers=arguments.workers)
        _check_prefix(arguments.output)
        return _sources(arguments)

    return build_corpus(
        each(comm, check),
        arguments.output,
        Recipe(arguments.tokenizer, arguments.text_field, arguments.bad_documents == "skip", arguments.eod_token),
        comm=comm,
        workers=arguments.workers or available_cores(comm.local_size),
        overwrite=arguments.overwrite,
    )


def inspect_corpus(arguments: argparse.Namespace) -> int:
    """Run `megaqk data inspect`."""
    _at_least(0, documents=arguments.documents)
    _check_prefix(arguments.prefix, "PREFIX")
    corpus = IndexedCorpus(arguments.prefix)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.eod_token) if arguments.tokenizer else None
    if tokenizer:
        manifest = read_manifest(arguments.prefix)
        if manifest is not None:
            check_tokenizer(arguments.prefix, manifest, tokenizer, "--tokenizer")
        else:
            check_tokens(corpus, tokenizer.vocab_size, at_most=_SAMPLE_TOKENS)
    lines = inspection.describe_corpus(corpus)
    if arguments.verify:
        lines += inspection.verify_corpus(corpus, vocab_size=tokenizer.vocab_size if tokenizer else None)
    if tokenizer:
        lines += inspection.first_documents(corpus, tokenizer, arguments.documents)
    print(*lines, sep="\n")
    return 0


def merge_corpora(arguments: argparse.Namespace) -> int:
    """Run `megaqk data merge`."""
    _check_prefix(arguments.output)
    for prefix in arguments.prefix:
        _check_prefix(prefix, "PREFIX")
    corpora = [IndexedCorpus(prefix) for prefix in arguments.prefix]
    assembling.merge(arguments.output, corpora, overwrite=arguments.overwrite)
    _report(arguments.output)
    return 0


def split_corpus(arguments: argparse.Namespace) -> int:
    """Run `megaqk data split`."""
    parts = dict(_named_fraction(part) for part in arguments.part)
    _check_prefix(arguments.output)
    _check_prefix(arguments.prefix, "PREFIX")
    if len(parts) < len(arguments.part):
        raise UserError(f"--part = {' '.join(arguments.part)}: each name must be given once")
    if not 0.999999 <= sum(parts.values()) <= 1.000001:
        raise UserError(f"--part = {' '.join(arguments.part)}: the fractions must add up to 1")
    prefixes = [arguments.output.with_name(f"{arguments.output.name}-{name}") for name in parts]
    assembling.split(prefixes, IndexedCorpus(arguments.prefix), list(parts.values()), overwrite=arguments.overwrite)
    for prefix in prefixes:
        _report(prefix)
    return 0


def _named_fraction(part: str) -> tuple[str, float]:
    name, _, fraction = part.partition("=")
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not name or "/" in name or not 0 <= value <= 1:
        raise UserError(f"--part = {part}: must be NAME=FRACTION with a name without / and a fraction in [0, 1]")
    return name, value


def _sources(arguments: argparse.Namespace) -> list[Source]:
    return find_sources(
        [str(builtin_file()) if name == BUILTIN else name for name in arguments.input],
        key="input",
        text_field=arguments.text_field,
        text_unit=arguments.text_unit,
        dataset_split=arguments.dataset_split,
        configuration=arguments.dataset_configuration,
    )


def _texts(arguments: argparse.Namespace, max_bytes: int | None = None) -> Iterator[str]:
    return iterate_texts(_sources(arguments), skip_bad=arguments.bad_documents == "skip", max_bytes=max_bytes)


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} = {value}: must be at least {least}")


def _check_prefix(prefix: Path, key: str = "--output") -> None:
    # To pathlib "." is no name at all.
    if prefix.name in ("", ".."):
        raise UserError(f"{key} = {prefix}: must end in a name, of which PREFIX.bin and PREFIX.idx are made")


def _report(prefix: Path) -> None:
    corpus = IndexedCorpus(prefix)
    print(f"{prefix}: {corpus.num_documents:,} documents, {corpus.num_tokens:,} tokens")
