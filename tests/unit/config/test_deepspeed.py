from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from megaqk.config.checks import check_world
from megaqk.config.deepspeed import OWNED, deepspeed_config
from megaqk.config.deepspeed_keys import KNOWN
from megaqk.config.loading import build_config
from megaqk.errors import UserError


def derive(sections: dict[str, Any], world_size: int = 1, *, cuda: bool = False) -> dict[str, Any]:
    config = build_config(sections)
    return deepspeed_config(config, check_world(config, world_size), cuda=cuda)


def accepted(settings: dict[str, Any], data: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What DeepSpeed makes of a configuration on one of `data` replicas."""
    monkeypatch.setattr("deepspeed.runtime.config.dist.get_rank", lambda: 0)
    return DeepSpeedConfig(settings, mpu=SimpleNamespace(get_data_parallel_world_size=lambda: data))


@pytest.mark.parametrize(
    ("precision", "stage"),
    # ZeRO-0 takes fp32 only; the schema refuses the rest.
    [("fp32", 0), *product(("fp32", "bf16", "fp16"), (1, 2, 3))],
)
def test_deepspeed_reads_what_we_mean(precision: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {
        "parallel": {"zero_stage": stage, "tensor": 2},
        "optimizer": {"grad_clip": 0.0},
        "training": {"precision": precision, "global_batch_size": 24, "micro_batch_size": 2},
    }
    read = accepted(derive(sections, 6), 3, monkeypatch)
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (24, 2, 4)
    assert read.zero_optimization_stage == stage
    assert read.zero_config.round_robin_gradients is False
    assert read.zero_config.overlap_comm is False
    assert read.zero_config.compute_grad_norm is True
    assert read.gradient_clipping == 0.0
    assert read.bfloat16_config.enabled is (precision == "bf16")
    assert read.float16_config.enabled is (precision == "fp16")
    assert read.grad_accum_dtype == ("fp32" if precision == "bf16" else None)
    assert read.pipeline["pipe_partitioned"] is False
    assert read.pipeline["grad_partitioned"] is False
    assert read.steps_per_print is None
    assert not read.wall_clock_breakdown
    assert not read.timers_config.enabled
    assert read.zero_allow_untested_optimizer is True
    assert read.optimizer_name is None
    assert read.scheduler_name is None


def test_clipping_is_passed_on() -> None:
    assert derive({"optimizer": {"grad_clip": 0.5}})["gradient_clipping"] == 0.5


def test_communication_overlaps_only_where_that_is_possible() -> None:
    def overlap(parallel: dict[str, int], world_size: int, cuda: bool) -> bool:
        return bool(derive({"parallel": parallel}, world_size, cuda=cuda)["zero_optimization"]["overlap_comm"])

    assert overlap({"zero_stage": 1}, 1, cuda=True)
    assert not overlap({"zero_stage": 1}, 1, cuda=False)
    assert not overlap({"zero_stage": 0}, 1, cuda=True)
    assert not overlap({"zero_stage": 1, "pipeline": 2}, 2, cuda=True)


def test_extra_keys_are_merged_deeply(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {
        "zero_optimization": {"reduce_bucket_size": 1000, "offload_optimizer": {"device": "cpu"}},
        "fp16": {"initial_scale_power": 8},
        "comms_logger": {"enabled": True},
    }
    settings = derive({"deepspeed": extra})
    assert settings["zero_optimization"]["stage"] == 1
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["fp16"] == {"enabled": False, "initial_scale_power": 8}
    assert accepted(settings, 1, monkeypatch).zero_config.offload_optimizer.device == "cpu"


def test_the_configuration_is_not_shared_between_calls() -> None:
    config = build_config({"deepspeed": {"zero_optimization": {"reduce_bucket_size": 7}}})
    layout = check_world(config, 1)
    deepspeed_config(config, layout)["zero_optimization"]["stage"] = 3
    assert deepspeed_config(config, layout)["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"train_batch_size": 4}, "deepspeed.train_batch_size = 4: must not be given; use training.global_batch_size"),
        (
            {"zero_optimization": {"stage": 2}},
            "deepspeed.zero_optimization.stage = 2: must not be given; use parallel.zero_stage",
        ),
        ({"bf16": {"enabled": True}}, "deepspeed.bf16.enabled = true: must not be given; use training.precision"),
        (
            {"optimizer": {"type": "Adam"}},
            "deepspeed.optimizer = {type: Adam}: must not be given; use optimizer.lr and its neighbours",
        ),
        (
            {"pipeline": {"activation_checkpoint_interval": 1}},
            "deepspeed.pipeline = {activation_checkpoint_interval: 1}: must not be given; use parallel.sequence and "
            "training.recompute",
        ),
        (
            {"gradient_allreduce_op": "sum"},
            "deepspeed.gradient_allreduce_op = sum: must not be given; the gradient is the mean over the global batch",
        ),
        ({"zero_optimization": 2}, "deepspeed.zero_optimization = 2: must be a mapping of keys"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "deepspeed.zero_optimization.offload_optimizer.ratio = 0.5: must not be given; "
            "an optimizer offloaded in part ignores the schedule",
        ),
        (
            {"checkpoint": {"load_universal": True}},
            "deepspeed.checkpoint.load_universal = true: must not be given; "
            "a run goes on from the checkpoints in run.dir",
        ),
        (
            {"wall_clock_breakdown": True},
            "deepspeed.wall_clock_breakdown = true: must come with deepspeed.steps_per_print above 0",
        ),
    ],
)
def test_keys_that_we_decide_are_refused(extra: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        derive({"deepspeed": extra})
    assert str(caught.value) == line


@pytest.mark.parametrize("path", OWNED)
def test_every_owned_key_is_refused_by_name(path: str) -> None:
    value: Any = 1
    for part in reversed(path.split(".")):
        value = {part: value}
    with pytest.raises(UserError, match=rf"^deepspeed\.{path} = 1: must not be given; "):
        derive({"deepspeed": value})


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"comms_loger": 1}, "deepspeed.comms_loger = 1: no key of DeepSpeed 0.19; did you mean comms_logger?"),
        ({"zero_optimisation": {}}, "deepspeed.zero_optimisation = {}: no key of DeepSpeed 0.19; did you mean zero_op"),
        ({"xyz": 1}, "deepspeed.xyz = 1: no key of DeepSpeed 0.19; allowed: aio, allgather_size, autotuning, bf16, "),
        # Removed from DeepSpeed: it would raise.
        ({"nebula": {}}, "deepspeed.nebula = {}: no key of DeepSpeed 0.19; allowed: "),
        (
            {"zero_optimization": {"reduce_bucket_sise": 5}},
            "deepspeed.zero_optimization.reduce_bucket_sise = 5: no key of DeepSpeed 0.19; "
            "did you mean reduce_bucket_size?",
        ),
        (
            {"zero_optimization": {"prefetch_buckets": 5}},
            "deepspeed.zero_optimization.prefetch_buckets = 5: no key of DeepSpeed 0.19; "
            "did you mean stage3_prefetch_bucket_size?",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "deepspeed.zero_optimization.offload_optimizer.devise = cpu: no key of DeepSpeed 0.19; did you mean dev",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "disk"}}},
            "deepspeed.zero_optimization.offload_optimizer.device = disk: must be one of none, cpu, nvme",
        ),
        (
            {"zero_optimization": {"offload_optimizer": 5}},
            "deepspeed.zero_optimization.offload_optimizer = 5: must be a section of keys",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": 0}},
            "deepspeed.zero_optimization.reduce_bucket_size = 0: must be above 0",
        ),
        (
            {"zero_optimization": {"allgather_bucket_size": 1.5}},
            "deepspeed.zero_optimization.allgather_bucket_size = 1.5: must be an integer",
        ),
        (
            {"zero_optimization": {"reduce_scatter": "perhaps"}},
            "deepspeed.zero_optimization.reduce_scatter = perhaps: must be true or false",
        ),
        ({"zero_optimization": {1: 2}}, "deepspeed.zero_optimization = "),
        (
            {"fp16": {"loss_scale": -1}},
            "deepspeed.fp16.loss_scale = -1: fp16.loss_scale must be >= 0 (0 enables dynamic loss scaling)",
        ),
        ({"bf16": {"enable": True}}, "deepspeed.bf16.enable = true: no key of DeepSpeed 0.19; "),
    ],
)
def test_what_deepspeed_does_not_know_is_refused(extra: dict[Any, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        derive({"deepspeed": extra})
    assert str(caught.value).startswith(line)
    assert len(str(caught.value).splitlines()) == 1


def test_known_keys_are_those_that_deepspeed_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()

    class Recorder(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            read.add(str(key))
            return super().__contains__(key)

        def __getitem__(self, key: str) -> Any:
            read.add(key)
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

        def keys(self) -> Any:
            return self

        def __copy__(self) -> "Recorder":
            return self

    accepted(Recorder(derive({})), 1, monkeypatch)
    assert not [key for key in sorted(KNOWN) if key not in read | {"allgather_size", "vocabulary_size"}]
