"""The whole configuration of a run."""

from pydantic import model_validator

from megaqk.config.base import Section, refusal
from megaqk.config.data import DataConfig
from megaqk.config.model import ModelConfig
from megaqk.config.optimization import OptimizerConfig, ScheduleConfig
from megaqk.config.qk_timing import QkTimingConfig
from megaqk.config.run import (
    CheckpointConfig,
    DeepSpeedConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)


class Config(Section):
    """Everything that determines a run. What it alone can decide is checked here; see `checks` for the rest."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    qk_timing: QkTimingConfig = QkTimingConfig()
    data: DataConfig = DataConfig(text="builtin")
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        self._check_sharding()
        self._check_deepspeed()
        self._check_lengths()
        self.qk_timing.check_layers(self.model.num_layers)
        return self

    def _check_sharding(self) -> None:
        model, parallel, training = self.model, self.parallel, self.training
        matched = ", parameter-matched" if model.gated and model.ffn_match_parameters else ""
        for key, value, note in (
            ("model.num_heads", model.num_heads, ""),
            ("model.num_kv_heads", model.kv_heads, ""),
            ("model.vocab_size", model.vocab_size, ""),
            ("model.ffn_hidden_size", model.ffn_width, f" (the width in use{matched})"),
        ):
            if value is not None and value % parallel.tensor:
                raise refusal(key, value, f"must be divisible by parallel.tensor = {parallel.tensor}{note}")
        if parallel.sequence and training.sequence_length % parallel.tensor:
            raise refusal(
                "training.sequence_length",
                training.sequence_length,
                f"must be divisible by parallel.tensor = {parallel.tensor} with parallel.sequence = true",
            )
        stages = parallel.layers_per_stage
        if stages is None and model.num_layers < parallel.pipeline:
            raise refusal(
                "model.num_layers",
                model.num_layers,
                f"must be at least parallel.pipeline = {parallel.pipeline} (or give parallel.layers_per_stage)",
            )
        if stages is not None and sum(stages) != model.num_layers:
            raise refusal("parallel.layers_per_stage", stages, f"must add up to model.num_layers = {model.num_layers}")
        if self.data.separate_documents and model.attention_dropout:
            raise refusal(
                "model.attention_dropout", model.attention_dropout, "must be 0 with data.separate_documents = true"
            )
        if training.precision != "fp32" and parallel.zero_stage == 0:
            raise refusal("parallel.zero_stage", 0, f"must be above 0 with training.precision = {training.precision}")

    def _check_deepspeed(self) -> None:
        parallel, deepspeed, implementation = self.parallel, self.deepspeed, self.optimizer.implementation
        offload = deepspeed.offload_optimizer == "cpu"
        for axis, impossible in (("zero_stage", parallel.zero_stage == 0), ("pipeline", parallel.pipeline > 1)):
            where = f"with parallel.{axis} = {getattr(parallel, axis)}"
            if impossible and deepspeed.overlap_comm:
                raise refusal("deepspeed.overlap_comm", True, f"must be null or false {where}")
            # In bf16 the pipeline engine hands the offloading optimizer wrong gradients: the norm was 28 % off.
            if impossible and offload:
                raise refusal("deepspeed.offload_optimizer", "cpu", f"must be none {where}")
        # On a GPU the other implementations are CUDA kernels, and what is offloaded lies in the host's memory.
        if offload and implementation not in ("torch", "deepspeed_cpu"):
            allowed = "must be one of torch, deepspeed_cpu with deepspeed.offload_optimizer = cpu"
            raise refusal("optimizer.implementation", implementation, allowed)

    def _check_lengths(self) -> None:
        training, schedule = self.training, self.schedule
        if training.global_batch_size % training.micro_batch_size:
            raise refusal(
                "training.global_batch_size",
                training.global_batch_size,
                f"must be divisible by training.micro_batch_size = {training.micro_batch_size}",
            )
        if schedule.warmup_steps > training.steps:
            raise refusal(
                "schedule.warmup_steps", schedule.warmup_steps, f"must not exceed training.steps = {training.steps}"
            )
        if schedule.decay_steps is None:
            return
        if schedule.kind != "wsd":
            raise refusal(
                "schedule.decay_steps", schedule.decay_steps, f"must be null with schedule.kind = {schedule.kind}"
            )
        if schedule.warmup_steps + schedule.decay_steps > training.steps:
            raise refusal(
                "schedule.decay_steps",
                schedule.decay_steps,
                f"must leave room for schedule.warmup_steps = {schedule.warmup_steps} in training.steps = "
                f"{training.steps}",
            )
