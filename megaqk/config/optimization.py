"""The optimizer and the learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from megaqk.config.base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.1, ge=0, description="On matrices and embeddings; never on norms and biases.")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.95), strict=False, description="Decay of the running mean and square of the gradient."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the square.")
    grad_clip: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 switches clipping off.")
    implementation: Literal["auto", "torch", "deepspeed_fused", "deepspeed_cpu", "apex"] = Field(
        "auto", description="auto takes apex on CUDA where the real one is installed, else torch's fused AdamW."
    )


class ScheduleConfig(Section):
    """Learning rate over the run, as a factor of optimizer.lr; see `megaqk.optim.schedules`."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "cosine", description="Shape after warm-up; wsd is warmup-stable-decay."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="Steps that the schedule and the fractions of qk_timing count over, after which both stay at their "
        "ends; null means training.steps. With its old length here a run is lengthened without a jump of either.",
    )
    accept_jump: bool = Field(
        False,
        description="Resume although the run's new length alone makes the learning rate rise or a multiplier fall.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up, for every kind.")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Factor at the end of the decay; constant ignores it.")
    decay_steps: int | None = Field(
        None, ge=1, description="wsd: length of the final decay; null means a tenth of the run."
    )
    decay_shape: Literal["linear", "cosine", "sqrt"] = Field(
        "linear", description="wsd: shape of the final decay; sqrt is 1 - sqrt(progress)."
    )
