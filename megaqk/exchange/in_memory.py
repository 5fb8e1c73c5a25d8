"""A model for transformers, from a checkpoint without writing anything, or from a folder."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from megaqk.checkpoint.reader import open_checkpoint
from megaqk.checkpoint.store import MANIFEST
from megaqk.errors import UserError
from megaqk.exchange.architectures.own import Own
from megaqk.exchange.extra import transformers_library
from megaqk.exchange.source import CheckpointModel
from megaqk.exchange.tokenizer_files import fast_tokenizer, settings
from megaqk.exchange.transformers_model import TransformersModel, as_transformers


def load_transformers(path: Path, tokenizer: Path | None = None) -> tuple[Any, Any]:
    """A model and its tokenizer for transformers.

    Args:
        path: A checkpoint (the folder of a step, or of a run: its newest), or a folder of transformers. Of the latter
            no code is run; what `megaqk export --remote-code` wrote is computed by our own.
        tokenizer: The file of the run's tokenizer, where it is not at its place any more.

    Returns:
        A `PreTrainedModel` in fp32 (of a folder: in the precision of its files), for evaluation, and a
        `PreTrainedTokenizerFast`.

    Raises:
        UserError: It is neither, or damaged, or the tokenizer is not found.
    """
    library = transformers_library()
    if (path / "config.json").is_file() and not (path / MANIFEST).is_file():
        return _from_folder(library, path)
    source = CheckpointModel.of(open_checkpoint(path))
    found, eod_id = source.tokenizer(tokenizer)
    positions = source.config.training.sequence_length
    described = as_transformers(
        source.config.model,
        source.tensors,
        tokens=source.tokens,
        positions=positions,
        eod_id=eod_id,
        remote_code=True,
    )
    fast = fast_tokenizer(found)
    wrapped = library.PreTrainedTokenizerFast(tokenizer_object=fast, **settings(found, fast, eod_id, positions))
    return model_of(described), wrapped


def model_of(described: TransformersModel) -> Any:
    """A model in memory, its tensors read one by one."""
    library = transformers_library()
    kind = described.config["model_type"]
    if described.own_code:
        from megaqk.exchange.modeling_megaqk import MegaqkConfig, MegaqkForCausalLM

        config, architecture = MegaqkConfig(**described.config), MegaqkForCausalLM
    else:
        values = {key: value for key, value in described.config.items() if key != "model_type"}
        config = library.AutoConfig.for_model(kind, **values)
        architecture = getattr(library, described.architecture.class_name)
    with import_module("transformers.initialization").no_init_weights():
        model = architecture(config)
    read: Mapping[str, Tensor] = {name: tensor.read() for name, tensor in described.tensors.items()}
    missing, unexpected = model.load_state_dict(read, strict=False, assign=True)
    tied = {"lm_head.weight", "head.weight"} if config.tie_word_embeddings else set()
    assert not unexpected, unexpected
    assert not set(missing) - tied, missing
    model.tie_weights()
    return model.eval()


def _from_folder(library: Any, path: Path) -> tuple[Any, Any]:
    try:
        if json.loads((path / "config.json").read_bytes()).get("model_type") == Own.model_type:
            from megaqk.exchange.modeling_megaqk import MegaqkForCausalLM

            model = MegaqkForCausalLM.from_pretrained(path, use_safetensors=True, local_files_only=True)
        else:
            model = library.AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
        tokenizer = library.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes it raise
        raise UserError(f"{path}: refused by transformers: {' '.join(str(error).split())[:300]}") from error
    return model.eval(), tokenizer
