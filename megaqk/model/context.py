"""What a layer is built from besides its place in the model."""

from dataclasses import dataclass, field

import torch

from megaqk.config.model import ModelConfig
from megaqk.config.root import Config
from megaqk.model.taps import Taps
from megaqk.model.uniform import UniformAttention
from megaqk.parallel.rng import DropoutRng
from megaqk.parallel.tensor_parallel import TensorParallel


@dataclass(frozen=True, kw_only=True)
class ModelContext:
    """Everything the layers of one process share.

    Attributes:
        model: Architecture.
        rows: Rows of the embedding table, padding included.
        tokens: Real tokens of the vocabulary.
        max_positions: Longest sequence.
        separate_documents: Whether attention stays within the documents that share a sample; positions say where
            they begin.
        recompute: Activation recomputation: none, selective or full.
        compiled: Whether blocks and the loss are compiled.
        tp: The tensor-parallel group.
        rng: Source of dropout masks.
        taps: Who watches the activations.
        uniform: Which heads attend to all they see alike.
    """

    model: ModelConfig
    rows: int
    tokens: int
    max_positions: int
    separate_documents: bool = False
    recompute: str = "none"
    compiled: bool = False
    tp: TensorParallel = field(default_factory=TensorParallel)
    rng: DropoutRng = field(default_factory=DropoutRng)
    taps: Taps = field(default_factory=Taps)
    uniform: UniformAttention = field(default_factory=UniformAttention)


def is_compiled(config: Config, device: torch.device) -> bool:
    """Whether blocks and loss are compiled: as configured, or where it is known to win."""
    if config.training.compile is not None:
        return config.training.compile
    return device.type == "cuda" and config.parallel.zero_stage < 3 and not config.model.drops


def model_context(
    config: Config,
    *,
    tokens: int,
    rows: int,
    compiled: bool = False,
    tp: TensorParallel | None = None,
    rng: DropoutRng | None = None,
) -> ModelContext:
    """The context of a configured model with a vocabulary of `tokens` in a table of `rows`."""
    return ModelContext(
        model=config.model,
        rows=rows,
        tokens=tokens,
        max_positions=config.training.sequence_length,
        separate_documents=config.data.separate_documents,
        recompute=config.training.recompute,
        compiled=compiled,
        tp=tp or TensorParallel(),
        rng=rng or DropoutRng(seed=config.training.seed),
    )
