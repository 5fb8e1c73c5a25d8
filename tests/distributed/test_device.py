"""Whole steps on a device that is not the CPU: nothing is left on the host, and nothing waits for the device.

The device is `tests.pretend`: host memory under another name.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import megaqk
from tests.distributed import commands, driver, questions
from tests.harness import DistributedError, run_distributed

STEPS = 3
PACKAGE = str(Path(megaqk.__file__).parent)
ENGINE = "deepspeed_engines.py"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt, ZeRO-0": ("gpt", {"zero_stage": 0}),
    "llama, grouped heads": ("grouped", {}),
    "gpt, pipeline 2": ("gpt", {"pipeline": 2}),
    "llama, pipeline 2": ("llama", {"pipeline": 2}),
    "gpt, tensor 2, sequence parallel": ("gpt", {"tensor": 2, "sequence": True}),
    "llama, tensor 2, sequence parallel, ZeRO-2": ("llama", {"tensor": 2, "sequence": True, "zero_stage": 2}),
    "llama, tensor 2 x pipeline 2": ("llama", {"tensor": 2, "pipeline": 2, "sequence": True}),
    "gpt, data 2, ZeRO-2": ("gpt", {"data": 2, "zero_stage": 2}),
    "llama, data 2, ZeRO-3": ("llama", {"data": 2, "zero_stage": 3}),
}


MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"preset": "gpt"},
    "llama": {"preset": "llama"},
    "grouped": {"preset": "llama", "num_kv_heads": 12},
}


@functools.cache
def reference(model: str) -> driver.Trace:
    return driver.plain_run(MODELS[model])


def steps_on_device(case: dict[str, Any], folder: str | None = None) -> tuple[list[float], list[tuple[str, str]]]:
    """Losses of a few steps, and what waited for the device inside the package; through a checkpoint if given one."""
    from tests import pretend

    device = pretend.install()
    engine = driver.start_engine(case)
    assert {p.device for p in engine.parameters.values()} | {b.device for b in engine.module.buffers()} == {device}
    losses, waits = [], []
    for step in range(STEPS):
        if folder is not None and step == STEPS - 1:
            engine = _through_a_checkpoint(engine, case, folder, step)
        del pretend.waits[:]
        with pretend.no_host_collectives():
            engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
        # Read before the loss is, which is meant to wait. The engine waits once for the norm, as DeepSpeed's does.
        waits += [wait for wait in pretend.waits if wait[1].startswith(PACKAGE) and ENGINE not in wait[1]]
        losses.append(float(engine.loss()))
        assert engine.gradient_norm() > 0
    return losses, waits


def _through_a_checkpoint(engine: Any, case: dict[str, Any], folder: str, step: int) -> Any:
    questions.save_engine(engine, folder, step)
    resumed = driver.start_engine(case)
    questions.load_engine(resumed, folder)
    return resumed


def run(case: dict[str, Any], data: int = 1, function: Any = steps_on_device, **kwargs: Any) -> list[Any]:
    call = functools.partial(function, case, **kwargs)
    return run_distributed(call, driver.world_size(case, data), init=False, timeout=150)


@pytest.mark.parametrize("name", CASES)
def test_steps_follow_the_plain_loop_without_waiting(name: str) -> None:
    model, parallel = CASES[name]
    for losses, waits in run(driver.settings(MODELS[model], **parallel), parallel.get("data", 1)):
        assert losses == pytest.approx(reference(model).losses[:STEPS], rel=1e-5)
        assert not waits


@pytest.mark.parametrize("zero", [1, 3])
def test_bf16(zero: int) -> None:
    case = driver.settings({"preset": "llama"}, training={"precision": "bf16"}, zero_stage=zero)
    [(losses, waits)] = run(case)
    assert losses == pytest.approx(reference("llama").losses[:STEPS], rel=1e-3)
    assert not waits


@pytest.mark.parametrize("parallel", [{"pipeline": 2}, {"data": 2, "zero_stage": 3}], ids=str)
def test_resumes(parallel: dict[str, Any], tmp_path: Path) -> None:
    case = driver.settings({"preset": "llama"}, **parallel)
    for losses, _ in run(case, parallel.get("data", 1), folder=str(tmp_path)):
        assert losses == pytest.approx(reference("llama").losses[:STEPS], rel=1e-5)


def command_on_device(argv: list[str]) -> int:
    from tests import pretend

    pretend.install()
    return commands.run_command(argv)


def test_a_whole_run_with_evaluation_and_checkpoints(write_config: Callable[..., Path], tmp_path: Path) -> None:
    losses = []
    for function in (commands.run_command, command_on_device):
        folder = tmp_path / function.__name__
        config = write_config(folder, parallel={"pipeline": 2})
        assert run_distributed(function, 2, ["pretrain", str(config)], init=False, timeout=150) == [0, 0]
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([value for line in lines for key, value in json.loads(line).items() if "loss" in key])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_placeholder_that_moves_alone_is_seen() -> None:
    """`Tensor.to` makes a new tensor without our marks on every device but the CPU."""
    with pytest.raises(DistributedError, match=r"AssertionError|KeyError"):
        run(driver.settings({"preset": "gpt"}, pipeline=2), function=_moved_placeholders)


def _moved_placeholders(case: dict[str, Any]) -> None:
    from megaqk.training import local_groups

    original = local_groups.new_parameter
    local_groups.new_parameter = lambda *arguments: original(*arguments).to("pretend:0")
    steps_on_device(case)


def test_a_table_left_on_the_host_is_seen() -> None:
    with pytest.raises(DistributedError, match="same device"):
        run(driver.settings({"preset": "llama"}), function=_tables_on_the_host)


def _tables_on_the_host(case: dict[str, Any]) -> None:
    from tests import pretend

    pretend.install()
    engine = driver.start_engine(case)
    for module in engine.module.modules():
        module._buffers.update({name: buffer.cpu() for name, buffer in module._buffers.items() if buffer is not None})
    engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))


def test_a_value_read_on_the_host_is_seen() -> None:
    [places] = run(driver.settings({"preset": "gpt"}), function=_reading)
    assert any(place.startswith(__file__) for place in places)


def _reading(case: dict[str, Any]) -> list[str]:
    from tests import pretend

    pretend.install()
    engine = driver.start_engine(case)
    original = engine.module.loss
    engine.module.loss = lambda logits, labels: original(logits, labels) * float(logits[0, 0, 0].item() < 1e9)
    del pretend.waits[:]
    engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))
    return [place for _, place in pretend.waits]
