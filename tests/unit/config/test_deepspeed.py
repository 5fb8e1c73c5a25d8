from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from megaqk.config.checks import check_world
from megaqk.config.deepspeed import OWNED, deepspeed_config
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
        ({"zero_optimization": 2}, "deepspeed.zero_optimization = 2: must be a mapping of keys"),
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
