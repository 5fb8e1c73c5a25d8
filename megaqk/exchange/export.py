"""A checkpoint as a Hugging Face folder."""

import json
import shutil
from pathlib import Path

from megaqk.checkpoint.reader import Checkpoint
from megaqk.data.tokenizer import Tokenizer
from megaqk.errors import UserError
from megaqk.exchange.architectures.own import MODULE
from megaqk.exchange.model_card import model_card
from megaqk.exchange.safetensors_files import DTYPES, write_tensors
from megaqk.exchange.source import CheckpointModel
from megaqk.exchange.tokenizer_files import write_tokenizer
from megaqk.exchange.transformers_model import TransformersModel, as_transformers
from megaqk.runtime.files import os_errors_named

NO_TOKENIZER = "none"


def export(
    checkpoint: Checkpoint,
    output: Path,
    *,
    dtype: str = "fp32",
    remote_code: bool = False,
    tokenizer: str | None = None,
) -> TransformersModel:
    """Write the folder, whole or not at all.

    Args:
        checkpoint: What is exported.
        output: The folder; it must not exist, or be empty.
        dtype: A key of `DTYPES`.
        remote_code: Whether a model that none of transformers' architectures computes is written with its own code.
        tokenizer: Its file; None finds it, `none` leaves it out.

    Raises:
        UserError: No architecture computes the model, its tokenizer is not found or cannot be carried over, the
            checkpoint is damaged, or `output` cannot be written.
    """
    output = output.absolute()
    with os_errors_named(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"--output = {output}: must be a new folder, or an empty one")
    source = CheckpointModel.of(checkpoint)
    found: tuple[Tokenizer, int] | None = None
    if tokenizer != NO_TOKENIZER:
        found = source.tokenizer(None if tokenizer is None else Path(tokenizer))
    model, positions = source.config.model, source.config.training.sequence_length
    result = as_transformers(
        model,
        source.tensors,
        tokens=source.tokens,
        positions=positions,
        eod_id=found[1] if found else None,
        remote_code=remote_code,
        dtype=str(DTYPES[dtype]).removeprefix("torch."),
    )
    partial = output.with_name(f".{output.name}.partial")
    with os_errors_named(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write_json(partial / "config.json", result.config)
            generation = {key: result.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            _write_json(partial / "generation_config.json", generation)
            if found:
                write_tokenizer(partial, *found, positions)
            if result.own_code:
                shutil.copyfile(Path(__file__).with_name(f"{MODULE}.py"), partial / f"{MODULE}.py")
            (partial / "README.md").write_text(model_card(source, result, dtype), encoding="utf-8")
            write_tensors(partial, result.tensors, DTYPES[dtype])
            if output.exists():
                output.rmdir()
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return result


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
