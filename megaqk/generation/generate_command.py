"""`megaqk generate`: text from a checkpoint or a Hugging Face folder."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named

if TYPE_CHECKING:
    from megaqk.generation.text_generator import TextGenerator


def add_generate_command(subparsers: Any) -> None:
    """Add the command to what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "generate",
        help="continue a text with a trained model",
        description="Continue a text, by transformers (docs/evaluation.md). Without options each token is drawn from "
        "what the model says.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a checkpoint, a run, or a Hugging Face folder")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="default: standard input; empty: the start of a document")
    prompt.add_argument("--prompt-file", metavar="FILE", type=Path, help="its last newline left out")
    prompt.add_argument("--interactive", action="store_true", help="a prompt a line, until Ctrl-D")
    parser.add_argument("--max-tokens", type=int, metavar="N", default=100, help="new ones; default: %(default)s")
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="default: 1; below it what is likely is likelier"
    )
    parser.add_argument("--top-p", type=float, metavar="X", help="only the likeliest tokens with this probability")
    parser.add_argument("--top-k", type=int, metavar="N", help="only the N likeliest tokens")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--seed", type=int, metavar="N", help="the same number gives the same text on the same machine")
    parser.add_argument("--num", type=int, metavar="N", default=1, help="continuations; default: %(default)s")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print words as they come; default: for a single continuation",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="the run's, if it is not where it was")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    _check(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: what is opened is a folder
    prompt = None if arguments.interactive else _prompt(arguments)

    try:
        from megaqk.generation.text_generator import Choice, TextGenerator  # which imports torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"megaqk generate: needs {error.name}, which is not installed: pip install 'megaqk[hf]'"
        ) from error

    choice = Choice(
        greedy=arguments.greedy, temperature=arguments.temperature, top_p=arguments.top_p, top_k=arguments.top_k
    )
    generator = TextGenerator(arguments.model, arguments.device, arguments.tokenizer, choice, seed=arguments.seed)
    if prompt is None:
        _converse(generator, arguments)
    else:
        _write(generator, prompt, arguments)
    return 0


def _write(generator: "TextGenerator", prompt: str, arguments: argparse.Namespace) -> None:
    if arguments.num == 1 and arguments.stream is not False:
        generator.stream(prompt, arguments.max_tokens, sys.stdout)
        print(flush=True)
        return
    print("\n---\n".join(generator.texts(prompt, arguments.max_tokens, arguments.num)), flush=True)


def _converse(generator: "TextGenerator", arguments: argparse.Namespace) -> None:
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            prompt = input(mark)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            _write(generator, prompt, arguments)
        except UserError as error:
            print(error, file=sys.stderr)
        except KeyboardInterrupt:  # enough of this one
            print()


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    path = arguments.prompt_file
    if path is None and sys.stdin.isatty():
        print("The prompt, then Ctrl-D:", file=sys.stderr)
    try:
        with os_errors_named(path or Path("standard input")):
            text = sys.stdin.buffer.read() if path is None else path.read_bytes()
        return text.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path or 'standard input'}: must be text in UTF-8 ({error.reason})") from error


def _check(arguments: argparse.Namespace) -> None:
    bounds: list[tuple[str, Any, Callable[[Any], bool], str]] = [
        ("--max-tokens", arguments.max_tokens, lambda x: x >= 1, "at least 1"),
        ("--num", arguments.num, lambda x: x >= 1, "at least 1"),
        ("--temperature", arguments.temperature, lambda x: 0 < x < float("inf"), "above 0; --greedy is its limit"),
        ("--top-p", arguments.top_p, lambda x: 0 < x <= 1, "in (0, 1]"),
        ("--top-k", arguments.top_k, lambda x: x >= 1, "at least 1"),
        ("--seed", arguments.seed, lambda x: 0 <= x < 1 << 63, "from 0 to 2^63 - 1"),
    ]
    for option, value, right, allowed in bounds:
        if value is not None and not right(value):
            raise UserError(f"{option} = {value}: must be {allowed}")
    sampling = {"--temperature": arguments.temperature, "--top-p": arguments.top_p, "--top-k": arguments.top_k}
    given = [option for option, value in sampling.items() if value is not None]
    if arguments.greedy and (given or arguments.num > 1):
        what = given[0] if given else f"--num = {arguments.num}"
        raise UserError(f"{what}: must not be given with --greedy, which leaves nothing to chance")
    if arguments.stream and arguments.num > 1:
        raise UserError(f"--num = {arguments.num}: must be 1 with --stream")
