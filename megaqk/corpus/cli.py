"""The `megaqk tokenizer` and `megaqk data` commands."""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megaqk.errors import UserError

Run = Callable[[argparse.Namespace], int]


def add_commands(subparsers: Any) -> None:
    """Add both commands to what `ArgumentParser.add_subparsers` returned; each sets `run`."""
    tokenizer = _group(subparsers, "tokenizer", "train and look at tokenizers")
    train = _command(tokenizer, "train", "train a sentencepiece tokenizer on text", _train)
    _add_inputs(train)
    train.add_argument("--output", type=Path, required=True, metavar="FILE.model")
    train.add_argument("--vocab-size", type=int, required=True, help="number of ids, special ones included")
    train.add_argument("--kind", choices=("bpe", "unigram"), default="bpe")
    train.add_argument("--special-token", action="append", default=[], help="a text that becomes one id; repeatable")
    train.add_argument("--max-bytes", type=int, help="read about so many bytes of text, from all inputs alike")
    train.add_argument("--sample-lines", type=int, default=0, help="learn from so many lines, drawn at random")
    inspect = _command(tokenizer, "inspect", "show a tokenizer and measure it on text", _inspect_tokenizer)
    inspect.add_argument("tokenizer", type=Path)
    _add_eod_token(inspect)
    _add_inputs(inspect, optional=True)
    inspect.add_argument("--pieces", type=int, default=20, help="how many pieces to show")

    data = _group(subparsers, "data", "prepare and look at corpora")
    prepare = _command(data, "prepare", "tokenise text into a Megatron corpus; also under mpirun", _prepare)
    _add_inputs(prepare)
    prepare.add_argument("--tokenizer", type=Path, required=True, help="a .model or tokenizer.json")
    _add_eod_token(prepare)
    prepare.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    prepare.add_argument("--workers", type=int, help="tokenising processes (default: the cores at hand)")
    prepare.add_argument(
        "--mpi", action="store_true", help="take part in MPI_COMM_WORLD (found by itself under mpirun)"
    )
    prepare.add_argument("--overwrite", action="store_true", help="replace a corpus made from something else")
    look = _command(data, "inspect", "show a corpus and check it", _inspect_corpus)
    look.add_argument("prefix", type=Path)
    look.add_argument("--tokenizer", type=Path, help="shows the first documents as text")
    _add_eod_token(look)
    look.add_argument("--documents", type=int, default=3, help="how many documents to show")
    look.add_argument("--verify", action="store_true", help="read everything: checksums, and ids within the vocabulary")
    merge = _command(data, "merge", "join corpora of one tokenizer", _merge)
    merge.add_argument("prefix", type=Path, nargs="+")
    split = _command(data, "split", "cut a corpus into PREFIX-NAME for each part", _split)
    split.add_argument("prefix", type=Path)
    split.add_argument(
        "--part", action="append", required=True, metavar="NAME=FRACTION", help="a part of the documents; repeatable"
    )
    for command in (merge, split):
        command.add_argument("--output", type=Path, required=True, metavar="PREFIX")
        command.add_argument("--overwrite", action="store_true")


def _group(subparsers: Any, name: str, summary: str) -> Any:
    return subparsers.add_parser(name, help=summary).add_subparsers(required=True, metavar="COMMAND")


def _command(subparsers: Any, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def _add_inputs(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "input",
        nargs="*" if optional else "+",
        help="files or quoted patterns (.jsonl, .json, .parquet, .csv, .arrow, .txt; .jsonl also .gz .zst .xz .bz2), "
        "saved datasets, hf://NAME, or builtin",
    )
    parser.add_argument("--text-field", default="text", help="the field that holds the text")
    parser.add_argument("--text-unit", choices=("document", "paragraph", "line"), default="document", help="of .txt")
    parser.add_argument("--dataset-split", default="train", help="split of a saved or hub dataset")
    parser.add_argument("--dataset-configuration", help="configuration of a hub dataset")
    parser.add_argument(
        "--bad-documents", choices=("stop", "skip"), default="stop", help="stop at the first, or skip and count"
    )


def _add_eod_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--eod-token", help="the tokenizer's token that ends documents (default: found by the common names)"
    )


def _sources(arguments: argparse.Namespace) -> Any:
    from megaqk.corpus.prepare import BUILTIN, builtin_file
    from megaqk.corpus.sources import find_sources

    return find_sources(
        [str(builtin_file()) if name == BUILTIN else name for name in arguments.input],
        key="input",
        text_field=arguments.text_field,
        text_unit=arguments.text_unit,
        dataset_split=arguments.dataset_split,
        configuration=arguments.dataset_configuration,
    )


def _texts(arguments: argparse.Namespace, max_bytes: int | None = None) -> Any:
    from megaqk.corpus.lanes import iterate_texts

    return iterate_texts(_sources(arguments), skip_bad=arguments.bad_documents == "skip", max_bytes=max_bytes)


def _train(arguments: argparse.Namespace) -> int:
    from megaqk.corpus.tokenizer_training import train_sentencepiece
    from megaqk.runtime.files import os_errors_named, written_whole

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


def _inspect_tokenizer(arguments: argparse.Namespace) -> int:
    from megaqk.corpus.inspection import describe_tokenizer, fertility
    from megaqk.data.tokenizer import load_tokenizer

    _at_least(0, pieces=arguments.pieces)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.eod_token)
    _print_lines(describe_tokenizer(tokenizer, pieces=arguments.pieces))
    if arguments.input:
        _print_lines(fertility(tokenizer, _texts(arguments)))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from megaqk.runtime.agreement import Interrupted, find_comm, stop_signals

    comm = find_comm(mpi=arguments.mpi)
    try:
        with stop_signals():
            manifest = _prepared(arguments, comm)
    except UserError:
        # All ranks have it; one says it.
        if comm.rank:
            return 2
        raise
    except Interrupted as stop:
        if comm.rank == 0:
            sys.stderr.write(f"{arguments.output}: stopped; the same command continues\n")
            sys.stderr.flush()
        return 128 + stop.number
    except Exception:
        # The others would wait forever for a rank that a defect of ours has ended.
        traceback.print_exc()
        sys.stderr.flush()
        comm.abort()
        raise
    if comm.rank == 0:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.skipped.items()))
        print(f"{arguments.output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens")
        if left_out:
            print(f"left out: {left_out}")
    return 0


def _prepared(arguments: argparse.Namespace, comm: Any) -> Any:
    from megaqk.corpus.build import build_corpus
    from megaqk.corpus.encoding import Recipe, available_cores
    from megaqk.runtime.agreement import all_done

    def checked_sources() -> Any:
        _at_least(1, workers=arguments.workers)
        _check_prefix(arguments.output)
        return _sources(arguments)

    return build_corpus(
        all_done(comm, checked_sources),
        arguments.output,
        Recipe(arguments.tokenizer, arguments.text_field, arguments.bad_documents == "skip", arguments.eod_token),
        comm=comm,
        workers=arguments.workers or available_cores(comm.local_size),
        overwrite=arguments.overwrite,
    )


def _inspect_corpus(arguments: argparse.Namespace) -> int:
    from megaqk.corpus.inspection import check_tokenizer, describe_corpus, first_documents, verify_corpus
    from megaqk.data.indexed import IndexedCorpus
    from megaqk.data.tokenizer import load_tokenizer

    _at_least(0, documents=arguments.documents)
    _check_prefix(arguments.prefix, "PREFIX")
    corpus = IndexedCorpus(arguments.prefix)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.eod_token) if arguments.tokenizer else None
    if tokenizer:
        check_tokenizer(corpus, tokenizer)
    _print_lines(describe_corpus(corpus))
    if arguments.verify:
        _print_lines(verify_corpus(corpus, vocab_size=tokenizer.vocab_size if tokenizer else None))
    if tokenizer:
        _print_lines(first_documents(corpus, tokenizer, arguments.documents))
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from megaqk.corpus.assembling import merge
    from megaqk.data.indexed import IndexedCorpus

    _check_prefix(arguments.output)
    for prefix in arguments.prefix:
        _check_prefix(prefix, "PREFIX")
    corpora = [IndexedCorpus(prefix) for prefix in arguments.prefix]
    merge(arguments.output, corpora, overwrite=arguments.overwrite)
    print(
        f"{arguments.output}: {sum(corpus.num_documents for corpus in corpora):,} documents, "
        f"{sum(corpus.num_tokens for corpus in corpora):,} tokens"
    )
    return 0


def _split(arguments: argparse.Namespace) -> int:
    from megaqk.corpus.assembling import split
    from megaqk.data.indexed import IndexedCorpus

    parts = dict(_named_fraction(part) for part in arguments.part)
    _check_prefix(arguments.output)
    _check_prefix(arguments.prefix, "PREFIX")
    if len(parts) < len(arguments.part):
        raise UserError(f"--part = {' '.join(arguments.part)}: each name must be given once")
    if not 0.999999 <= sum(parts.values()) <= 1.000001:
        raise UserError(f"--part = {' '.join(arguments.part)}: the fractions must add up to 1")
    prefixes = [arguments.output.with_name(f"{arguments.output.name}-{name}") for name in parts]
    split(prefixes, IndexedCorpus(arguments.prefix), list(parts.values()), overwrite=arguments.overwrite)
    for prefix in prefixes:
        corpus = IndexedCorpus(prefix)
        print(f"{prefix}: {corpus.num_documents:,} documents, {corpus.num_tokens:,} tokens")
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


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} = {value}: must be at least {least}")


def _check_prefix(prefix: Path, key: str = "--output") -> None:
    # To pathlib "." is no name at all.
    if prefix.name in ("", ".."):
        raise UserError(f"{key} = {prefix}: must end in a name, of which PREFIX.bin and PREFIX.idx are made")


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line)
