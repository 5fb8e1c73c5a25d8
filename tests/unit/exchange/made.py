"""Checkpoints of tiny models, their files written directly, and tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaqk.checkpoint.boxes import boxes_of_range
from megaqk.checkpoint.index import Index, tensor_name
from megaqk.checkpoint.rank_file import file_name, write_rank_file
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore
from megaqk.config.loading import build_config
from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.model.decoder import Decoder
from megaqk.runtime.files import sha256_of
from tests.unit.exchange.tiny import LENGTH, TOKENS

RANKS = 3
TEXTS = (
    "Once upon a time there was a king who had three sons; the youngest was called Simpleton.",
    "  two spaces, then\n\n a new line,\tand a tab  ",
    "Zahlen 1234567, Umlaute äöü, 漢字, emoji 🙂, accents e\u0301.",
    "literal <|endoftext|> and <unk> and <0x41> and \u2581 signs",
    "",
    " ",
    "a" * 40,
)


def write_checkpoint(
    run_dir: Path,
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Any],
    tokenizer: Path | None,
    *,
    tokens: int = TOKENS,
    length: int = LENGTH,
    data: Mapping[str, Any] | None = None,
    valid_loss: float | None = 1.25,
) -> Path:
    """The checkpoint of step 3 of a run, in the files of three ranks, none of which has a whole matrix."""
    if data is None:
        data = {"text": "builtin", **({} if tokenizer is None else {"tokenizer": str(tokenizer)})}
    config = build_config({"model": model, "training": {"sequence_length": length}, "data": data})
    store = CheckpointStore(run_dir / "checkpoints", Retention(newest=1))
    store.begin(3)
    files, sizes = {}, {}
    for rank in range(RANKS):
        parts, content = [], []
        for name, tensor in tensors.items():
            first, end = (tensor.numel() * (rank + more) // RANKS for more in (0, 1))
            boxes = boxes_of_range(tuple(tensor.shape), first, end, at_most=1 << 22)
            parts += [(tensor_name("weight", name), box) for box in boxes]
            content.append(tensor.flatten()[first:end])
        path = store.partial(3) / file_name(rank)
        files[path.name] = write_rank_file(path, parts, torch.cat(content))
        sizes[path.name] = path.stat().st_size
    manifest = {
        "progress": {"step": 3, "samples": 24, "tokens": 24 * length, "skipped": 0},
        "config": config.model_dump(mode="json"),
        "identity": {"tokens": tokens},
        "data": {
            "tokenizer": "" if tokenizer is None else sha256_of(tokenizer),
            "corpora": [{"name": None, "split": [0.9, 0.05, 0.05]}],
        },
        "state": {},
        "valid_loss": valid_loss,
    }
    shapes = {tensor_name("weight", name): tuple(tensor.shape) for name, tensor in tensors.items()}
    store.commit(3, manifest, Index(shapes, files), sizes)
    return store.path(3)


def checkpoint_of(run_dir: Path, decoder: Decoder, tokenizer: Path | None, **others: Any) -> Path:
    named = {name: parameter.detach() for name, parameter in decoder.global_parameters().items()}
    return write_checkpoint(run_dir, named, dict(decoder.context.model), tokenizer, **others)


def write_sentencepiece(path: Path, kind: Any, vocab_size: int = 400) -> Path:
    texts = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").splitlines()
    path.write_bytes(train_sentencepiece(texts, vocab_size=vocab_size, kind=kind, special_tokens=["<|mark|>"]))
    return path
