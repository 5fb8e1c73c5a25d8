"""The run itself: where it writes, how it is split over processes, how long and how often."""

from typing import Literal

from pydantic import Field, model_validator

from megaqk.config.base import Section, refusal


class RunConfig(Section):
    """Where a run lives."""

    dir: str = Field("runs/default", min_length=1, description="Everything the run writes goes below this folder.")


class ParallelConfig(Section):
    """Sizes of the parallel axes; the data-parallel size is what the world size leaves."""

    tensor: int = Field(1, ge=1, description="Ranks that share each matrix.")
    pipeline: int = Field(1, ge=1, description="Stages that share the blocks.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="What data-parallel ranks share: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too. One "
        "fp32 replica has nobody to share with: 1 is 0 there.",
    )
    sequence: bool = Field(False, description="Megatron sequence parallelism in the tensor-parallel group.")
    layers_per_stage: tuple[int, ...] | None = Field(
        None,
        strict=False,
        description="Blocks on each pipeline stage; null means as even as possible. 0 on the first or last stage "
        "leaves the embedding or the head alone there.",
    )

    @model_validator(mode="after")
    def _check(self) -> "ParallelConfig":
        if self.pipeline > 1 and self.zero_stage > 1:
            raise refusal(
                "zero_stage", self.zero_stage, f"must be 0 or 1 with parallel.pipeline = {self.pipeline} (above 1)"
            )
        if self.sequence and self.tensor == 1:
            raise refusal("sequence", True, "must be false with parallel.tensor = 1")
        stages = self.layers_per_stage
        if stages is None:
            return self
        if len(stages) != self.pipeline:
            raise refusal("layers_per_stage", stages, f"must have parallel.pipeline = {self.pipeline} entries")
        if min(stages) < 0 or 0 in stages[1:-1]:
            raise refusal("layers_per_stage", stages, "must be positive (0 on the first or last stage only)")
        return self


class DeepSpeedConfig(Section):
    """How DeepSpeed moves and keeps what it holds, under DeepSpeed's own names; none of it changes the mathematics."""

    reduce_bucket_size: int = Field(
        50_000_000, ge=1, description="Elements of a gradient reduction; DeepSpeed's own 5e8 allocates 2 GB in fp32."
    )
    allgather_bucket_size: int = Field(
        50_000_000, ge=2, multiple_of=2, description="Elements of a gathering of updated weights; even."
    )
    overlap_comm: bool | None = Field(
        None,
        description="Reduce gradients during the backward pass; null means where it is possible: on CUDA, with "
        "ZeRO and without a pipeline.",
    )
    stage3_prefetch_bucket_size: int = Field(
        50_000_000, ge=0, description="ZeRO-3: elements of weights fetched ahead of their use."
    )
    stage3_param_persistence_threshold: int = Field(
        100_000, ge=0, description="ZeRO-3: weights with fewer elements stay whole on every rank."
    )
    stage3_max_live_parameters: int = Field(
        1_000_000_000, ge=0, description="ZeRO-3: elements of weights that a rank may hold whole at a time."
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        "none", description="Where the optimizer's state lives and steps; cpu saves device memory and costs time."
    )
    immediate_grad_update: bool = Field(
        False,
        description="bf16 with ZeRO-1: add each gradient to its fp32 sum as soon as it is computed, not after the "
        "backward pass; saves 2 bytes a parameter, and the sums are the same.",
    )
    initial_scale_power: int = Field(16, ge=0, le=32, description="fp16: the loss scale starts at 2 to this power.")
    loss_scale_window: int = Field(
        1000, ge=1, description="fp16: steps without an overflow after which the loss scale doubles."
    )


class TrainingConfig(Section):
    """Length, batch and numerics of the run."""

    steps: int = Field(1000, ge=1, description="Optimizer steps of the whole run.")
    global_batch_size: int = Field(32, ge=1, description="Samples per optimizer step over all processes.")
    micro_batch_size: int = Field(4, ge=1, description="Samples per forward pass of one data-parallel rank.")
    sequence_length: int = Field(1024, ge=2, le=100_000_000, description="Tokens of a sample.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of weights and activations; bf16 accumulates gradients in fp32, fp16 needs CUDA."
    )
    seed: int = Field(1234, ge=0, description="Decides the initial weights, the sample order and dropout.")
    deterministic: bool = Field(
        False,
        description="The same seed gives the same numbers, bit for bit, on the same processes, devices and versions, "
        "or the run is refused. It costs speed: one thread a process on a CPU, slower kernels and rings on CUDA.",
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none",
        description="Activation recomputation: selective repeats all of a block but its products and attention, full "
        "everything.",
    )
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = Field(
        "auto",
        description="CUDA: the attention kernel to try first; auto means cudnn on Hopper, flash elsewhere.",
    )
    compile: bool | None = Field(
        None,
        description="Compile each block and the loss, which takes time at the start; null means on CUDA, where "
        "possible: below ZeRO-3, without dropout.",
    )

    time_limit: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the run saves, after the step that it is at, and ends with status 75.",
    )
    watchdog: float | None = Field(
        600.0,
        ge=5,
        description="Seconds without a step after which a run of several processes is ended, with the stack of each; "
        "set-up and saving may take longer. null waits forever.",
    )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.global_batch_size * self.sequence_length


class CheckpointConfig(Section):
    """How often to save and how much to keep."""

    every: int = Field(1000, ge=0, description="Steps between checkpoints; 0 saves at the end only.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_every: int = Field(0, ge=0, description="Checkpoints of steps that this divides are kept for good; 0: none.")
    keep_best: int = Field(
        0,
        ge=0,
        description="Checkpoints with the lowest validation loss kept; checkpoint.every must be a multiple of "
        "evaluation.every then, so that it is measured at each.",
    )


class LoggingConfig(Section):
    """How often metrics are written."""

    every: int = Field(10, ge=1, description="Steps between records.")


class FaultsConfig(Section):
    """What is done where loss or gradient are not finite, or far off what they were."""

    skipped_steps: int = Field(
        10,
        ge=1,
        description="Steps in a row, skipped since their loss or gradient is not finite, after which action is taken; "
        "in fp16 not those in which the loss scale is first looked for.",
    )
    action: Literal["stop", "go_back"] = Field(
        "stop",
        description="stop ends the run as diverged; go_back returns to the newest checkpoint before the first of these "
        "steps and leaves their samples out.",
    )
    attempts: int = Field(
        3, ge=1, description="How often a run may go back before it saves a checkpoint past the fault; then it stops."
    )
    spike_deviations: float = Field(
        8.0,
        ge=0,
        description="A loss or gradient norm that is more standard deviations than this above its mean is a spike; 0 "
        "looks for none.",
    )
    spike_window: int = Field(
        100,
        ge=2,
        description="Steps over which mean and deviation reach, exponentially; none is judged before as many.",
    )
    spike_action: Literal["log", "go_back", "stop"] = Field(
        "log",
        description="log says a spike, go_back also returns to the newest checkpoint before it and leaves its samples "
        "out, stop ends the run as diverged.",
    )
