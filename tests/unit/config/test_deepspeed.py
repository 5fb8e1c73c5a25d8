from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from megaqk.config import run
from megaqk.config.deepspeed import deepspeed_config
from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch


def derive(sections: dict[str, Any], world_size: int = 1, *, cuda: bool = False) -> dict[str, Any]:
    config = build_config(sections)
    return deepspeed_config(config, micro_batches=World(config, Launch(world_size=world_size)).micro_batches, cuda=cuda)


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
    # It would reorder gradients by rank, and with them the sums.
    assert read.zero_config.round_robin_gradients is False
    assert read.zero_config.contiguous_gradients is True
    assert read.zero_config.reduce_scatter is True
    assert read.zero_config.overlap_comm is False
    assert read.zero_config.compute_grad_norm is True
    assert read.zero_config.offload_optimizer.device == "none"
    assert read.zero_config.reduce_bucket_size == read.zero_config.allgather_bucket_size == 50_000_000
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
    assert read.zero_force_ds_cpu_optimizer is False
    assert read.optimizer_name is None
    assert read.scheduler_name is None


def test_deepspeed_reads_every_key_of_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    section = {
        "reduce_bucket_size": 11,
        "allgather_bucket_size": 12,
        "overlap_comm": True,
        "stage3_prefetch_bucket_size": 13,
        "stage3_param_persistence_threshold": 14,
        "stage3_max_live_parameters": 15,
        "offload_optimizer": "cpu",
        "initial_scale_power": 8,
        "loss_scale_window": 16,
    }
    assert section.keys() == run.DeepSpeedConfig.model_fields.keys()
    sections = {
        "deepspeed": section,
        "parallel": {"zero_stage": 3},
        "optimizer": {"implementation": "torch"},
        "training": {"precision": "fp16"},
    }
    read = accepted(derive(sections), 1, monkeypatch)
    zero, scale = read.zero_config, read.float16_config
    assert (zero.reduce_bucket_size, zero.allgather_bucket_size, zero.overlap_comm) == (11, 12, True)
    assert (zero.prefetch_bucket_size, zero.param_persistence_threshold, zero.max_live_parameters) == (13, 14, 15)
    assert zero.offload_optimizer.device == "cpu"
    # Partial offload ignores the schedule.
    assert zero.offload_optimizer.ratio == 1.0
    assert scale.loss_scale == 0
    assert scale.initial_dynamic_scale() == 2**8
    assert scale.dynamic_loss_scale_args()["scale_window"] == 16


def test_our_defaults_are_those_of_deepspeed_but_for_the_buckets() -> None:
    theirs = DeepSpeedZeroConfig().model_dump(by_alias=True) | DeepSpeedFP16Config().model_dump()
    ours = run.DeepSpeedConfig().model_dump(exclude={"overlap_comm", "offload_optimizer"})
    assert {key for key, value in ours.items() if theirs[key] != value} == {
        "reduce_bucket_size",
        "allgather_bucket_size",
    }


def test_clipping_is_passed_on() -> None:
    assert derive({"optimizer": {"grad_clip": 0.5}})["gradient_clipping"] == 0.5


def test_communication_overlaps_where_that_is_possible() -> None:
    def overlap(parallel: dict[str, int], world_size: int, cuda: bool, asked: bool | None = None) -> bool:
        sections = {"parallel": parallel, "deepspeed": {"overlap_comm": asked}}
        return bool(derive(sections, world_size, cuda=cuda)["zero_optimization"]["overlap_comm"])

    assert overlap({"zero_stage": 1}, 2, cuda=True)
    assert not overlap({"zero_stage": 1}, 2, cuda=False)
    assert not overlap({"zero_stage": 0}, 2, cuda=True)
    assert not overlap({"zero_stage": 1, "pipeline": 2}, 4, cuda=True)
    assert not overlap({"zero_stage": 1}, 2, cuda=True, asked=False)
    assert overlap({"zero_stage": 1}, 2, cuda=False, asked=True)


def test_one_replica_has_nothing_to_share() -> None:
    def stage(parallel: dict[str, int], world_size: int, **sections: Any) -> Any:
        return derive({"parallel": parallel, **sections}, world_size)["zero_optimization"]["stage"]

    assert stage({"zero_stage": 1}, 1) == stage({"zero_stage": 1, "tensor": 2, "pipeline": 2}, 4) == 0
    assert stage({"zero_stage": 1}, 2) == 1
    assert stage({"zero_stage": 3}, 1) == 3
    assert stage({"zero_stage": 1}, 1, training={"precision": "bf16"}) == 1
    offload: dict[str, Any] = {"optimizer": {"implementation": "torch"}, "deepspeed": {"offload_optimizer": "cpu"}}
    assert stage({"zero_stage": 1}, 1, **offload) == 1


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"deepspeed": {"overlap_comm": True}, "parallel": {"pipeline": 2}},
            "deepspeed.overlap_comm = true: must be null or false with parallel.pipeline = 2",
        ),
        (
            {"deepspeed": {"overlap_comm": True}, "parallel": {"zero_stage": 0}},
            "deepspeed.overlap_comm = true: must be null or false with parallel.zero_stage = 0",
        ),
        (
            {"deepspeed": {"offload_optimizer": "cpu"}, "parallel": {"zero_stage": 0}},
            "deepspeed.offload_optimizer = cpu: must be none with parallel.zero_stage = 0",
        ),
        (
            {"deepspeed": {"offload_optimizer": "cpu"}, "parallel": {"pipeline": 2}},
            "deepspeed.offload_optimizer = cpu: must be none with parallel.pipeline = 2",
        ),
        (
            {"deepspeed": {"offload_optimizer": "cpu"}},
            "optimizer.implementation = auto: must be one of torch, deepspeed_cpu with deepspeed.offload_optimizer "
            "= cpu",
        ),
        (
            {"deepspeed": {"offload_optimizer": "nvme"}},
            "deepspeed.offload_optimizer = nvme: must be one of none, cpu",
        ),
        (
            {"deepspeed": {"reduce_bucket_sise": 5}},
            "deepspeed.reduce_bucket_sise = 5: unknown key; did you mean deepspeed.reduce_bucket_size?",
        ),
        ({"deepspeed": {"reduce_bucket_size": 0}}, "deepspeed.reduce_bucket_size = 0: must be at least 1"),
        ({"deepspeed": {"allgather_bucket_size": 5}}, "deepspeed.allgather_bucket_size = 5: must be a multiple of 2"),
        (
            {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 5}}},
            "deepspeed.zero_optimization = {reduce_bucket_size: 5}: unknown key; allowed in deepspeed: "
            "reduce_bucket_size, ",
        ),
    ],
)
def test_what_the_section_refuses(sections: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        build_config(sections)
    assert str(caught.value).startswith(line)
