"""Training a sentencepiece tokenizer."""

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Literal

import sentencepiece

from megaqk.data.tokenizer import END_OF_DOCUMENT
from megaqk.errors import UserError
from megaqk.runtime.signals import in_background

# Longer lines would be dropped by the trainer without a word; it holds all of its input in memory anyway.
_LONGEST_LINE = 1 << 24
# The unigram trainer adds up in an order that depends on how many threads it has: the same number on every machine
# makes the same tokenizer. Threads beyond the cores cost next to nothing.
_THREADS = 16
_UNKNOWN = "<unk>"
# 256 bytes, the unknown, the end of document and the newline.
_NEEDED_PIECES = 259
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _lines(texts: Iterable[str]) -> Iterator[str]:
    # The newline is a piece of its own (below), so no piece reaches across one and lines can be learned from apart.
    for text in texts:
        for line in text.split("\n"):
            if line:
                yield line


def _sampled(lines: Iterator[str], count: int) -> list[str]:
    # A reservoir. The trainer's own sampling starts from another seed in every process.
    draws = random.Random(0)
    sample = list(islice(lines, count))
    for number, line in enumerate(lines, start=count + 1):
        place = int(draws.random() * number)
        if place < count:
            sample[place] = line
    return sample


def train_sentencepiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    kind: Literal["bpe", "unigram"] = "bpe",
    special_tokens: Sequence[str] = (),
    sample_lines: int = 0,
    vocab_size_key: str = "vocab_size",
    input_key: str = "input",
) -> bytes:
    """Train a tokenizer that gives every text back exactly: nothing is normalised, unknown characters become bytes.

    Args:
        texts: Documents; each is learned from line by line.
        vocab_size: Number of ids, all special ones included.
        kind: Byte-pair encoding or a unigram language model.
        special_tokens: Texts that always become one id each.
        sample_lines: Train on this many lines drawn at random, always the same ones of the same texts; 0 takes all.
        vocab_size_key: What the user calls `vocab_size`, for messages.
        input_key: What the user calls the texts, for messages.
    """
    _check_special(special_tokens)
    check_vocab_size(vocab_size, vocab_size_key, len(special_tokens))
    lines = _lines(texts)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{input_key}: must hold text to learn from")
    lines = chain([first], lines)
    model = io.BytesIO()
    try:
        train = partial(
            sentencepiece.SentencePieceTrainer.train,
            sentence_iterator=iter(_sampled(lines, sample_lines)) if sample_lines else lines,
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            num_threads=_THREADS,
            input_sentence_size=0,
            max_sentence_length=_LONGEST_LINE,
            byte_fallback=True,
            character_coverage=0.9999,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", *special_tokens],
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_DOCUMENT,
            minloglevel=2,
        )
        in_background(train)
    except RuntimeError as error:
        raise _explained(error, vocab_size, vocab_size_key) from error
    return model.getvalue()


def check_vocab_size(vocab_size: int, key: str, num_special: int = 0) -> None:
    """Refuse a size that no text can give a tokenizer, before any is read."""
    needed = _NEEDED_PIECES + num_special + 1
    if vocab_size < needed:
        raise UserError(f"{key} = {vocab_size}: must be at least {needed}: every byte, the special tokens and a piece")


def _check_special(special_tokens: Sequence[str]) -> None:
    for number, token in enumerate(special_tokens):
        if token == END_OF_DOCUMENT:
            raise UserError(f"--special-token = {token}: is the end of every document, which no text may hold")
        if token in ("", "\n", _UNKNOWN) or _BYTE.fullmatch(token):
            raise UserError(f"--special-token = {token!r}: must not be empty or a piece that every tokenizer has")
        if token in special_tokens[:number]:
            raise UserError(f"--special-token = {token}: must be given once")


def _explained(error: RuntimeError, vocab_size: int, key: str) -> UserError:
    message = str(error)
    if found := re.search(r"too high .*<= (\d+)", message):
        return UserError(f"{key} = {vocab_size}: this text gives at most {found[1]}")
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(f"{key} = {vocab_size}: the characters and bytes of this text alone take {found[1]}")
    reason = message.strip().splitlines()[-1] if message.strip() else "no reason given"
    return UserError(f"{key} = {vocab_size}: the tokenizer could not be trained: {reason}")
