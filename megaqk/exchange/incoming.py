"""A Hugging Face folder as a model of ours: keys of the model section, and tensors by global name."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from megaqk.config.model import ModelConfig
from megaqk.config.problems import describe
from megaqk.errors import UserError
from megaqk.exchange.architectures import IN
from megaqk.exchange.architectures.own import Own
from megaqk.exchange.extra import transformers_library
from megaqk.exchange.lazy import LazyTensor
from megaqk.exchange.safetensors_files import open_tensors
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder

_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of the names of what older versions of transformers kept beside the parameters."""


@dataclass(frozen=True)
class Incoming:
    """A model that was trained elsewhere.

    Attributes:
        path: Its folder.
        model: Its ingredients and shapes, without `vocab_size`.
        tokens: Rows of its vocabulary.
        context_limit: Key of its `config.json` and the most tokens of a sequence that it allows; None: any number.
        tensors: By global name; those of the vocabulary have `tokens` rows, a table of learned positions as many as
            `context_limit` says.
        eos_token_id: What it says ends a document.
    """

    path: Path
    model: ModelConfig
    tokens: int
    context_limit: tuple[str, int] | None
    tensors: dict[str, LazyTensor]
    eos_token_id: int | None


class _Noted(Mapping[str, LazyTensor]):
    """Tensors by name, and which were asked for."""

    def __init__(self, path: Path, tensors: dict[str, LazyTensor]) -> None:
        self._path, self._tensors, self.used = path, tensors, set[str]()

    def __getitem__(self, name: str) -> LazyTensor:
        if name not in self._tensors:
            raise UserError(f"{self._path}: holds no {name}, which its architecture has")
        self.used.add(name)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_folder(path: Path) -> Incoming:
    """Open a folder that transformers could open; no tensor is read but those that tell what stands for nothing.

    Raises:
        UserError: It is none, computes what a model of ours does not, or a file is damaged or not safetensors.
    """
    config = read_config(path)
    architecture = IN[config.model_type]
    noted = _Noted(path, open_tensors(path))
    try:
        keys, tensors = architecture.from_transformers(config, noted)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    # A tied table may be there under both its names.
    ignored = {"lm_head.weight", "head.weight"} if keys["tied_embedding"] else set[str]()
    unknown = [name for name in noted if name not in noted.used | ignored and not name.endswith(_BUFFERS)]
    if unknown:
        raise UserError(f"{path}: holds {unknown[0]}, for which a model of ours has no place")
    try:
        model = ModelConfig(**keys)
    except ValidationError as error:
        raise UserError(f"{path / 'config.json'}: {describe(error)[0]}") from error
    limit = architecture.context_limit(config)
    incoming = Incoming(path, model, config.vocab_size, limit, tensors, _single(config.eos_token_id))
    _check_shapes(incoming)
    return incoming


def read_config(path: Path) -> Any:
    """The `config.json` of a folder, as transformers' own class reads it.

    Raises:
        UserError: It is not there, damaged, or of an architecture that a model of ours is not.
    """
    file = path / "config.json"
    try:
        kind = json.loads(file.read_bytes()).get("model_type")
    except OSError as error:
        raise UserError(f"{path}: must be a folder with a config.json ({error.strerror})") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: damaged, not a configuration of transformers") from error
    if kind not in IN:
        raise UserError(f"{file}: model_type = {kind}: must be one of {', '.join(sorted(IN))}")
    library = transformers_library()
    try:
        if kind == Own.model_type:
            from megaqk.exchange.modeling_megaqk import MegaqkConfig

            return MegaqkConfig.from_pretrained(path, local_files_only=True)
        return library.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its checks of any value raise
        raise UserError(f"{file}: refused by transformers: {' '.join(str(error).split())}") from error


def _single(value: int | list[int] | None) -> int | None:
    return value[0] if isinstance(value, list) else value


def _check_shapes(incoming: Incoming) -> None:
    """Refuse tensors of other shapes than its own configuration says.

    Raises:
        UserError: Naming the first.
    """
    limit = incoming.context_limit[1] if incoming.context_limit else 1
    context = ModelContext(model=incoming.model, rows=incoming.tokens, tokens=incoming.tokens, max_positions=limit)
    with torch.device("meta"):
        expected = {name: tuple(one.shape) for name, one in Decoder(context).global_parameters().items()}
    found = {name: tensor.shape for name, tensor in incoming.tensors.items()}
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            has = f"has shape {found[name]}" if name in found else "is not there"
            must = f"have {expected[name]}" if name in expected else "not be there"
            raise UserError(f"{incoming.path}: {name} {has}, must {must} by its config.json")
