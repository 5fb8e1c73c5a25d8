"""Every probe on every topology against a plain model in one process."""

import io
import json
import shutil
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaqk.config.loading import load_config
from tests.distributed import commands, driver
from tests.distributed.heavy_ball import HeavyBallOwner
from tests.distributed.poison import Poison
from tests.distributed.probe_reference import expected, run_keeping
from tests.harness import run_distributed

GPT: dict[str, Any] = {"preset": "gpt"}
LLAMA: dict[str, Any] = {"preset": "llama", "num_kv_heads": 2, "qk_norm": True}
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], bool]] = {
    "one process": (1, GPT, {}, False),
    "tensor 2": (2, GPT, {"tensor": 2, "zero_stage": 0}, False),
    "pipeline 2, documents": (2, GPT, {"pipeline": 2, "layers_per_stage": [3, 1]}, True),
    "tensor 2 x pipeline 2": (4, LLAMA, {"tensor": 2, "pipeline": 2, "sequence": True}, False),
    "tensor 2 x data 2": (4, GPT, {"tensor": 2, "sequence": True}, False),
    "data 2, ZeRO-0": (2, LLAMA, {"zero_stage": 0}, False),
    "data 2, ZeRO-2": (2, LLAMA, {"zero_stage": 2}, False),
    "data 2, ZeRO-3, documents": (2, LLAMA, {"zero_stage": 3}, True),
}
"""Processes, model, parallel axes, and whether documents are kept apart."""
FULL = ("tensor 2", "data 2, ZeRO-0")
STEPS = 3


def read(run: Path, name: str = "probes.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def leaves(value: Any, name: str = "") -> dict[str, float]:
    if isinstance(value, dict):
        return {key: leaf for part, one in value.items() for key, leaf in leaves(one, f"{name}/{part}").items()}
    if isinstance(value, list):
        return {key: leaf for part, one in enumerate(value) for key, leaf in leaves(one, f"{name}/{part}").items()}
    return {name: value}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] if name in FULL else []) for name in CASES]
)
def test_every_number_equals_a_plain_computation(
    tmp_path: Path, write_config: Callable[..., Path], data_section: dict[str, Any], name: str
) -> None:
    world, model, parallel, separate = CASES[name]
    config = write_config(
        tmp_path,
        model=model,
        parallel=parallel,
        optimizer={"grad_clip": 0.1},
        training={"steps": STEPS},
        data={**data_section, "separate_documents": separate},
        probes={"every": 2, "micro_batches": 2},
    )
    statuses = run_distributed(run_keeping, world, ["pretrain", str(config)], str(tmp_path), init=False, timeout=120)
    assert statuses == [0] * world
    records, metrics = read(tmp_path / "run"), read(tmp_path / "run", "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 2, 3]
    assert [record["tokens"] for record in records] == [0, 256, 384]
    norms = {record["step"]: record["grad_norm"] for record in metrics if "grad_norm" in record}
    for record in records:
        step = record.pop("step")
        del record["tokens"]
        assert leaves(record) == pytest.approx(leaves(expected(load_config(config, []), tmp_path, step)), rel=2e-5)
        if step:
            assert norms[step] > 0.1, "it is clipped"
            whole = sqrt(sum(norm**2 for norm in leaves(record["gradient_norm"]).values()))
            assert whole == pytest.approx(norms[step], rel=1e-6)
    # Nobody looks into a step after which nothing is due.
    assert [torch.load(tmp_path / f"{step}.pt", weights_only=True)[-1] for step in range(STEPS + 1)] == [0, 1, 1, 0]


def probed(write_config: Callable[..., Path], folder: Path, **sections: Any) -> list[str]:
    """The command line of a run of 14 steps that is probed every second one."""
    base: dict[str, Any] = {"training": {"steps": 14}, "probes": {"every": 2}, "evaluation": {"batches": 0}}
    return ["pretrain", str(write_config(folder, **{**base, **sections}))]


def run(argv: list[str], *more: Any, world: int = 1) -> None:
    assert run_distributed(commands.run_with, world, argv, *more, init=False, timeout=100) == [0] * world


def test_a_resumed_run_has_each_probe_once(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    whole, broken = (
        probed(write_config, tmp_path / name, probes={"every": 2, "max_logit_alert": 1e-3})
        for name in ("whole", "broken")
    )
    run(whole)
    run([*broken, "training.steps=5", "schedule.steps=14"])
    assert [record["step"] for record in read(tmp_path / "broken" / "run")] == [0, 2, 4, 5]
    shutil.rmtree(tmp_path / "broken" / "run" / "checkpoints" / "step-5")
    run(broken)  # from step 3 on
    records = read(tmp_path / "whole" / "run")
    assert [record["step"] for record in records] == list(range(0, 15, 2))
    assert read(tmp_path / "broken" / "run") == records
    for name in ("whole", "broken"):
        folder = tmp_path / name / "run"
        [alert] = [
            line for line in (folder / "logs" / "rank0.log").read_text().splitlines() if "max_logit_alert" in line
        ]
        value, layer, head = max((v, i, h) for i, row in enumerate(records[0]["logit_max"]) for h, v in enumerate(row))
        assert f"step 0: an attention logit of {value:.4g} in layer {layer}, head {head} is above " in alert
        reader = EventAccumulator(str(folder / "tensorboard" / "probes"), size_guidance={"scalars": 0, "images": 0})
        reader.Reload()
        entropies = [sum(record["attention_entropy"][3]) / 4 for record in records]
        points = [(event.step, event.value) for event in reader.Scalars("probes/attention_entropy/layer03")]
        assert points == [(2 * n, pytest.approx(entropy, rel=1e-6)) for n, entropy in enumerate(entropies)]
        [*_, ratio] = reader.Scalars("probes/update_ratio/ffn_in/layer00")
        assert (ratio.step, ratio.value) == (14, pytest.approx(records[-1]["update_ratio"]["ffn_in"][0], rel=1e-6))
        for tag in ("attention_write_energy/layer_by_step", "attention_entropy/head_by_layer"):
            pictures = reader.Images(f"probes/{tag}")
            assert [picture.step for picture in pictures] == [8, 14]
            assert imread(io.BytesIO(pictures[-1].encoded_image_string)).shape[:2] == (
                pictures[-1].height,
                pictures[-1].width,
            )


def test_skipped_steps_and_going_back(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    faults = {"action": "go_back", "skipped_steps": 3, "spike_deviations": 0}
    row = [step * 8 for step in (7, 8, 9)]  # first samples of steps 8 to 10: the run goes back to step 6
    run(probed(write_config, tmp_path, faults=faults), Poison(samples=[3 * 8, *row]))
    records = read(tmp_path / "run")
    assert [record["step"] for record in records] == list(range(0, 15, 2))
    assert [record["step"] for record in records if "gradient_norm" not in record] == [0, 4]
    assert ["update_ratio" in record for record in records] == ["gradient_norm" in record for record in records]
    assert "back from step 10 to step 6" in (tmp_path / "run" / "logs" / "rank0.log").read_text()


def test_a_run_is_the_same_with_probes_and_without(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    losses = []
    for every in (0, 2):
        folder = tmp_path / str(every)
        run(probed(write_config, folder, probes={"every": every}, parallel={"pipeline": 2}), world=2)
        losses.append([record["loss"] for record in read(folder / "run", "metrics.jsonl")])
        assert (folder / "run" / "probes.jsonl").exists() == bool(every)
        assert (folder / "run" / "tensorboard" / "probes").exists() == bool(every)
    assert losses[0] == losses[1]


ENGINES: dict[str, dict[str, Any]] = {
    "bf16, ZeRO-1": {"training": {"precision": "bf16"}},
    "bf16, ZeRO-2": {"training": {"precision": "bf16"}, "zero_stage": 2},
    "bf16, ZeRO-3": {"training": {"precision": "bf16"}, "zero_stage": 3},
    "offloaded": {"zero_stage": 2, "optimizer": {"implementation": "torch"}},
}


def watched(name: str) -> list[tuple[float, float]]:
    """The norm of the gradient of two steps by the engine and by the watch, with two optimizers, on one rank."""
    case = driver.settings({"preset": "gpt"}, data=2, **ENGINES[name])
    case["deepspeed"] = {"offload_optimizer": "cpu" if name == "offloaded" else "none"}
    engine = driver.start_engine(case, owners=(HeavyBallOwner(2),))
    from megaqk.training.step_watch import GRADIENT, StepWatch

    watch, norms = StepWatch(engine), []
    for step in range(2):
        watch.arm()
        engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
        watch.disarm()
        squares = watch.squares.clone()
        torch.distributed.all_reduce(squares)
        assert (squares[1:] > 0).all()
        norm = engine.gradient_norm()
        norms.append((norm, float(squares[GRADIENT].sum().sqrt()) * max(1.0, (norm + 1e-6) / driver.CLIP)))
    return norms


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] if name == "bf16, ZeRO-2" else []) for name in ENGINES]
)
def test_the_watch_sees_what_each_of_deepspeeds_optimizers_steps(name: str) -> None:
    for norms in run_distributed(watched, 2, name, init=False):
        for norm, seen in norms:
            assert norm > driver.CLIP
            assert seen == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("parallel", [{"tensor": 2, "zero_stage": 0}, {"data": 2, "zero_stage": 3}], ids=str)
def test_a_probe_copies_to_the_host_once_and_waits_for_nothing_else(parallel: dict[str, Any]) -> None:
    case = driver.settings(GPT, **parallel)
    for record, waits in run_distributed(waiting, driver.world_size(case, parallel.get("data", 1)), case, init=False):
        assert (record is None) == (waits == [])
        assert len(waits) <= 1


def waiting(case: dict[str, Any]) -> tuple[dict[str, Any] | None, list[Any]]:
    """The record of a probe on a device that is not the CPU, and what waited for the device in it."""
    from tests import pretend

    pretend.install()
    engine = driver.start_engine(case)
    from megaqk.runtime.pulse import Pulse
    from megaqk.training.probe_measurement import measure
    from megaqk.training.step_watch import StepWatch

    watch = StepWatch(engine)
    watch.arm()
    batches = list(driver.micro_batches(engine, driver.batches()[0]))
    del pretend.waits[:]
    engine.train_step(iter(batches), driver.at_step(0))
    in_step = [wait for wait in pretend.waits if "step_watch" in wait[1]]
    watch.disarm()
    engine.loss()
    del pretend.waits[:]
    copies = []
    cpu = torch.Tensor.cpu
    torch.Tensor.cpu = lambda self: copies.append(self.numel()) or cpu(self)  # type: ignore[method-assign]
    record = measure(engine, batches, watch, Pulse())
    torch.Tensor.cpu = cpu  # type: ignore[method-assign]
    return record, [*in_step, *(wait for wait in pretend.waits if "megaqk" in wait[1]), *copies]
