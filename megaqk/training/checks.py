"""What a run refuses before its first step, decided alike for `megaqk check` and for the run."""

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from megaqk.config.root import Config
from megaqk.corpus.prepare import open_data
from megaqk.data.existing import PreparedData
from megaqk.data.identity import data_identity
from megaqk.data.splits import Splits
from megaqk.errors import UserError
from megaqk.model.context import is_compiled
from megaqk.model.vocab_size import Vocabulary, vocabulary_of
from megaqk.optim.optimizers import choose_implementation
from megaqk.runtime.agreement import Comm, each
from megaqk.runtime.device import REPEATABLE
from megaqk.training.evaluated_texts import EvaluatedText, open_evaluated


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a configuration and its data decide.

    Attributes:
        prepared: Tokenizer and corpora.
        splits: The samples in them.
        vocabulary: Size of the vocabulary.
        identity: What of the data a resumed run must keep.
        evaluated: What the run is evaluated on.
    """

    prepared: PreparedData
    splits: Splits
    vocabulary: Vocabulary
    identity: dict[str, Any]
    evaluated: tuple[EvaluatedText, ...]


def open_inputs(config: Config, comm: Comm) -> RunInputs:
    """Open the data of a run, preparing it if need be, and refuse what does not fit it.

    Args:
        config: The run.
        comm: Its processes, each of which calls this; or one alone.

    Raises:
        UserError: The data is missing, damaged or too small, or the model does not fit it: on all ranks.
    """
    prepared, splits = open_data(config, comm)
    training = config.training
    vocabulary = each(comm, lambda: vocabulary_of(config, prepared.vocab_size))
    if count := config.probes.micro_batches if config.probes.every else 0:
        each(comm, lambda: splits.probed("probes.micro_batches", count, training.micro_batch_size))
    identity = data_identity(
        prepared,
        config.data,
        seed=training.seed,
        global_batch_size=training.global_batch_size,
        sequence_length=training.sequence_length,
        comm=comm,
    )
    return RunInputs(
        prepared=prepared,
        splits=splits,
        vocabulary=vocabulary,
        identity=identity,
        evaluated=open_evaluated(config, prepared, splits, comm),
    )


def missing(config: Config, device: torch.device) -> list[str]:
    """What a machine whose device is this lacks for a run, a line for each."""
    lines = []
    if config.training.precision == "fp16" and device.type != "cuda":
        lines.append("training.precision = fp16: needs a CUDA device; use bf16 or fp32 on a CPU")
    steps_on_host = config.optimizer.implementation == "deepspeed_cpu"
    if steps_on_host and device.type == "cuda" and config.deepspeed.offload_optimizer == "none":
        lines.append(
            "optimizer.implementation = deepspeed_cpu: must be one of auto, torch, deepspeed_fused, apex on a CUDA "
            "device, unless deepspeed.offload_optimizer = cpu"
        )
    for name, values in REPEATABLE.items() if config.training.deterministic and device.type == "cuda" else ():
        if os.environ.get(name, values[0]) not in values:
            lines.append(
                f"{name} = {os.environ[name]}: must be unset or one of {', '.join(values)} with "
                "training.deterministic = true; others add up in an order that changes"
            )
    compiler = os.environ.get("CXX", "g++")
    if is_compiled(config, device) and not shutil.which(compiler):
        lines.append(f"training.compile: needs the C++ compiler {compiler} (CXX); or set training.compile=false")
    try:
        choose_implementation(config.optimizer, device)
    except UserError as error:
        lines.append(str(error))
    return lines


def check_device(config: Config, device: torch.device) -> None:
    """Refuse a run that this machine cannot do.

    Raises:
        UserError: For the first thing that is missing.
    """
    for line in missing(config, device):
        raise UserError(line)
