"""The whole configuration of a run."""

from operator import attrgetter
from typing import Any

from pydantic import model_validator

from megaqk.config.base import Section, refusal
from megaqk.config.data import SPLIT_WITH_TEST, DataConfig
from megaqk.config.model import ModelConfig
from megaqk.config.optimization import OptimizerConfig, ScheduleConfig
from megaqk.config.probes import ProbesConfig
from megaqk.config.qk_clip import QkClipConfig
from megaqk.config.qk_timing import QkTimingConfig
from megaqk.config.run import (
    CheckpointConfig,
    DeepSpeedConfig,
    FaultsConfig,
    LoggingConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megaqk.config.validation import EvaluationConfig


class Config(Section):
    """Everything that determines a run. What it alone can decide is checked here; see `checks` for the rest."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    qk_timing: QkTimingConfig = QkTimingConfig()
    qk_clip: QkClipConfig = QkClipConfig()
    data: DataConfig = DataConfig(text="builtin")
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    faults: FaultsConfig = FaultsConfig()
    probes: ProbesConfig = ProbesConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @model_validator(mode="before")
    @classmethod
    def _hold_back_a_test_part(cls, raw: Any) -> Any:
        """Leave a test part where one is asked for and nobody has said how large the parts are."""
        match raw:
            case {"evaluation": {"test": True}, **rest}:
                data = rest.get("data") or {"text": "builtin"}
                if isinstance(data, dict) and "split" not in data:
                    return {**raw, "data": {**data, "split": SPLIT_WITH_TEST}}
        return raw

    @model_validator(mode="after")
    def _check(self) -> "Config":
        self._check_sharding()
        self._check_deepspeed()
        self._check_evaluation()
        self._check_lengths()
        self.qk_timing.check_layers(self.model.num_layers)
        return self

    @property
    def schedule_steps(self) -> int:
        """Steps that the learning-rate schedule and the fractions of qk_timing count over."""
        return self.schedule.steps or self.training.steps

    def _require(self, holds: bool, key: str, allowed: str) -> None:
        """Refuse the value of a dotted key where a condition does not hold."""
        if not holds:
            raise refusal(key, attrgetter(key)(self), allowed)

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
        self._require(
            not parallel.sequence or training.sequence_length % parallel.tensor == 0,
            "training.sequence_length",
            f"must be divisible by parallel.tensor = {parallel.tensor} with parallel.sequence = true",
        )
        stages = parallel.layers_per_stage
        self._require(
            stages is not None or model.num_layers >= parallel.pipeline,
            "model.num_layers",
            f"must be at least parallel.pipeline = {parallel.pipeline} (or give parallel.layers_per_stage)",
        )
        self._require(
            stages is None or sum(stages) == model.num_layers,
            "parallel.layers_per_stage",
            f"must add up to model.num_layers = {model.num_layers}",
        )
        self._require(
            not self.data.separate_documents or not model.attention_dropout,
            "model.attention_dropout",
            "must be 0 with data.separate_documents = true",
        )
        self._require(
            self.qk_clip.threshold is None or not model.qk_norm,
            "qk_clip.threshold",
            "must be null with model.qk_norm = true, which undoes any scale",
        )
        # ZeRO-3 fetches weights by hooks inside a block, and dropout seeds its generators on the host.
        for key, possible in (("parallel.zero_stage", parallel.zero_stage < 3), ("model.dropout", not model.drops)):
            self._require(
                possible or not training.compile,
                "training.compile",
                f"must be false or null with {key} = {attrgetter(key)(self)}",
            )
        self._require(
            not training.deterministic or training.attention != "cudnn",
            "training.attention",
            "must be one of auto, flash, efficient, math with training.deterministic = true; cuDNN's backward pass "
            "adds up in any order",
        )
        self._require(
            training.precision == "fp32" or parallel.zero_stage > 0,
            "parallel.zero_stage",
            f"must be above 0 with training.precision = {training.precision}",
        )

    def _check_deepspeed(self) -> None:
        parallel, offload = self.parallel, self.deepspeed.offload_optimizer == "cpu"
        for axis, possible in (("zero_stage", parallel.zero_stage > 0), ("pipeline", parallel.pipeline == 1)):
            where = f"with parallel.{axis} = {getattr(parallel, axis)}"
            overlap = bool(self.deepspeed.overlap_comm)
            self._require(possible or not overlap, "deepspeed.overlap_comm", f"must be null or false {where}")
            # In bf16 the pipeline engine hands the offloading optimizer wrong gradients: the norm was 28 % off.
            self._require(possible or not offload, "deepspeed.offload_optimizer", f"must be none {where}")
        for key, possible in (
            ("training.precision", self.training.precision == "bf16"),
            # Elsewhere DeepSpeed's ZeRO optimizers accumulate, which do not read it.
            ("parallel.zero_stage", parallel.zero_stage == 1),
            ("deepspeed.offload_optimizer", not offload),
        ):
            self._require(
                possible or not self.deepspeed.immediate_grad_update,
                "deepspeed.immediate_grad_update",
                f"must be false with {key} = {attrgetter(key)(self)}",
            )
        self._require(
            # On a GPU the other implementations are CUDA kernels, and what is offloaded lies in the host's memory.
            not offload or self.optimizer.implementation in ("torch", "deepspeed_cpu"),
            "optimizer.implementation",
            "must be one of torch, deepspeed_cpu with deepspeed.offload_optimizer = cpu",
        )

    def _check_evaluation(self) -> None:
        splits = [one.split or self.data.split for one in self.data.sources or ()] or [self.data.split]
        self._require(
            not self.evaluation.test or any(test for _, _, test in splits),
            "evaluation.test",
            f"must be false with data.split = {list(splits[0])}, which leaves no test part; the third must be above 0",
        )
        every, evaluated = self.checkpoint.every, self.evaluation.every
        self._require(
            not self.checkpoint.keep_best or self.evaluation.batches != 0,
            "checkpoint.keep_best",
            "must be 0 with evaluation.batches = 0",
        )
        self._require(
            not self.checkpoint.keep_best or bool(evaluated and every % evaluated == 0),
            "checkpoint.keep_best",
            f"must be 0 unless checkpoint.every = {every} is a multiple of evaluation.every = {evaluated}",
        )

    def _check_lengths(self) -> None:
        training, schedule = self.training, self.schedule
        self._require(
            training.global_batch_size % training.micro_batch_size == 0,
            "training.global_batch_size",
            f"must be divisible by training.micro_batch_size = {training.micro_batch_size}",
        )
        length = f"{'training' if schedule.steps is None else 'schedule'}.steps = {self.schedule_steps}"
        self._require(
            schedule.warmup_steps <= self.schedule_steps, "schedule.warmup_steps", f"must not exceed {length}"
        )
        decay = schedule.decay_steps
        self._require(
            decay is None or schedule.kind == "wsd",
            "schedule.decay_steps",
            f"must be null with schedule.kind = {schedule.kind}",
        )
        self._require(
            decay is None or schedule.warmup_steps + decay <= self.schedule_steps,
            "schedule.decay_steps",
            f"must leave room for schedule.warmup_steps = {schedule.warmup_steps} in {length}",
        )
