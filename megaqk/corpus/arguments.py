"""The command line of `megaqk tokenizer` and `megaqk data`; what the commands do is in `commands`."""

import argparse
import importlib
from pathlib import Path
from typing import Any


def add_commands(subparsers: Any) -> None:
    """Add both commands to what `ArgumentParser.add_subparsers` returned; each sets `run`."""
    tokenizer = _group(subparsers, "tokenizer", "train and look at tokenizers")
    train = _command(tokenizer, "train", "train a sentencepiece tokenizer on text", "train_tokenizer")
    _add_inputs(train)
    train.add_argument("--output", type=Path, required=True, metavar="FILE.model")
    train.add_argument("--vocab-size", type=int, required=True, help="number of ids, special ones included")
    train.add_argument("--kind", choices=("bpe", "unigram"), default="bpe")
    train.add_argument("--special-token", action="append", default=[], help="a text that becomes one id; repeatable")
    train.add_argument("--max-bytes", type=int, help="read about so many bytes of text, from all inputs alike")
    train.add_argument("--sample-lines", type=int, default=0, help="learn from so many lines, drawn at random")
    inspect = _command(tokenizer, "inspect", "show a tokenizer and measure it on text", "inspect_tokenizer")
    inspect.add_argument("tokenizer", type=Path)
    _add_eod_token(inspect)
    _add_inputs(inspect, optional=True)
    inspect.add_argument("--pieces", type=int, default=20, help="how many pieces to show")

    data = _group(subparsers, "data", "prepare and look at corpora")
    prepare = _command(data, "prepare", "tokenise text into a Megatron corpus; also under mpirun", "prepare_corpus")
    _add_inputs(prepare)
    prepare.add_argument("--tokenizer", type=Path, required=True, help="a .model or tokenizer.json")
    _add_eod_token(prepare)
    prepare.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    prepare.add_argument("--workers", type=int, help="tokenising processes (default: the cores at hand)")
    prepare.add_argument("--mpi", action="store_true", help="take part in MPI_COMM_WORLD (found under mpirun)")
    prepare.add_argument("--overwrite", action="store_true", help="replace a corpus made from something else")
    look = _command(data, "inspect", "show a corpus and check it", "inspect_corpus")
    look.add_argument("prefix", type=Path)
    look.add_argument("--tokenizer", type=Path, help="shows the first documents as text")
    _add_eod_token(look)
    look.add_argument("--documents", type=int, default=3, help="how many documents to show")
    look.add_argument("--verify", action="store_true", help="read everything: checksums, and ids within the vocabulary")
    merge = _command(data, "merge", "join corpora of one tokenizer", "merge_corpora")
    merge.add_argument("prefix", type=Path, nargs="+")
    split = _command(data, "split", "cut a corpus into PREFIX-NAME for each part", "split_corpus")
    split.add_argument("prefix", type=Path)
    split.add_argument("--part", action="append", required=True, metavar="NAME=FRACTION", help="a part; repeatable")
    for command in (merge, split):
        command.add_argument("--output", type=Path, required=True, metavar="PREFIX")
        command.add_argument("--overwrite", action="store_true")


def _group(subparsers: Any, name: str, summary: str) -> Any:
    return subparsers.add_parser(name, help=summary).add_subparsers(required=True, metavar="COMMAND")


def _command(subparsers: Any, name: str, summary: str, function: str) -> argparse.ArgumentParser:
    def run(arguments: argparse.Namespace) -> int:
        # Here, as it takes a moment to import.
        status: int = getattr(importlib.import_module("megaqk.corpus.commands"), function)(arguments)
        return status

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
    parser.add_argument("--bad-documents", choices=("stop", "skip"), default="stop", help="skip: and count them")


def _add_eod_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--eod-token", help="the token that ends documents (default: found by the common names)")
