"""What a configuration means for a number of processes: the layout of the run, or a refusal."""

from dataclasses import dataclass
from math import lcm

from megaqk.config.root import Config
from megaqk.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is laid out over its processes.

    Attributes:
        tensor: Tensor-parallel ranks.
        pipeline: Pipeline stages.
        data: Data-parallel replicas.
        micro_batches: Forward and backward passes of one replica in one optimizer step.
        layers_per_stage: For each stage its blocks as (first, last + 1), by global depth.
    """

    tensor: int
    pipeline: int
    data: int
    micro_batches: int
    layers_per_stage: tuple[tuple[int, int], ...]

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.tensor * self.pipeline * self.data

    @property
    def bubble_fraction(self) -> float:
        """Part of a step that a stage idles: (p - 1) / (m + p - 1) for p stages and m micro-batches.

        This is 1F1B with equal stages and no communication (Narayanan et al., arXiv 2104.04473, section 2.2, where
        the bubble is given relative to the ideal time instead: (p - 1) / m).
        """
        return (self.pipeline - 1) / (self.micro_batches + self.pipeline - 1)


def check_world(config: Config, world_size: int) -> Layout:
    """Lay a run out over its processes.

    Args:
        config: The run.
        world_size: Number of processes.

    Returns:
        The layout; the data-parallel size is what tensor and pipeline leave.

    Raises:
        UserError: Where the processes or the batch cannot be divided; one line with key, value and what is allowed.
    """
    parallel, training = config.parallel, config.training
    model_parallel = parallel.tensor * parallel.pipeline
    if world_size < 1 or world_size % model_parallel:
        raise UserError(
            f"world size = {world_size}: must be a multiple of parallel.tensor x parallel.pipeline = "
            f"{parallel.tensor} x {parallel.pipeline} = {model_parallel}"
        )
    data = world_size // model_parallel
    samples = training.micro_batch_size * data
    if training.global_batch_size % samples:
        raise UserError(
            f"training.global_batch_size = {training.global_batch_size}: must be divisible by "
            f"training.micro_batch_size x data-parallel size = {training.micro_batch_size} x {data} = {samples}"
        )
    return Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=data,
        micro_batches=training.global_batch_size // samples,
        layers_per_stage=split_layers(config.model.num_layers, parallel.pipeline, parallel.layers_per_stage),
    )


def split_layers(num_layers: int, stages: int, per_stage: tuple[int, ...] | None = None) -> tuple[tuple[int, int], ...]:
    """Blocks of each pipeline stage.

    Args:
        num_layers: Blocks of the whole model.
        stages: Pipeline stages.
        per_stage: Blocks of each stage; None means evenly, the earliest stages taking one more each of a remainder,
            since the last stage also has the head and the loss.

    Returns:
        (first, last + 1) for each stage; they follow each other and cover [0, num_layers).
    """
    if per_stage is None:
        quotient, remainder = divmod(num_layers, stages)
        per_stage = tuple(quotient + (stage < remainder) for stage in range(stages))
    ends = [sum(per_stage[: stage + 1]) for stage in range(stages)]
    return tuple((end - count, end) for end, count in zip(ends, per_stage, strict=True))


def padded_vocab_size(size: int, multiple: int, tensor: int) -> int:
    """Rows of the embedding for a tokenizer.

    Args:
        size: Tokens that the tokenizer knows.
        multiple: `model.vocab_multiple_of`.
        tensor: Tensor-parallel ranks, which must divide the rows.

    Returns:
        The smallest multiple of lcm(multiple, tensor) that is not below `size`.
    """
    step = lcm(multiple, tensor)
    return -(-size // step) * step


def embedding_rows(config: Config, tokens: int) -> int:
    """Rows of the embedding: `model.vocab_size` where it is given, else the tokenizer's ids, padded.

    Args:
        config: The run.
        tokens: Ids of the tokenizer.

    Raises:
        UserError: If `model.vocab_size` is smaller than the tokenizer.
    """
    rows = config.model.vocab_size
    if rows is None:
        return padded_vocab_size(tokens, config.model.vocab_multiple_of, config.parallel.tensor)
    if rows < tokens:
        raise UserError(f"model.vocab_size = {rows}: must be at least the tokenizer's {tokens}")
    return rows
