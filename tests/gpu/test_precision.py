"""bf16 and fp16 steps on the device: what is kept in fp32, and what happens to a step that overflows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import devices
from tests.distributed import driver, questions
from tests.distributed.test_bf16 import reference

BF16: dict[int, list[tuple[str, dict[str, Any]]]] = {
    1: [("gpt", {"zero_stage": 1}), ("llama", {"zero_stage": 2}), ("llama", {"zero_stage": 3})],
    2: [("gpt", {"zero_stage": 2, "data": 2}), ("llama", {"zero_stage": 3, "data": 2})],
    4: [("llama", {"tensor": 2, "pipeline": 2, "sequence": True})],
}
"""Models and their parallelism, by number of ranks."""
OVERFLOWING_POWER = 32
FP16_STEPS = 30


@pytest.mark.parametrize("world", BF16)
def test_bf16_follows_the_fp32_loop(world: int) -> None:
    training = {"precision": "bf16"}
    runs = [
        {"case": devices.settings({"preset": preset}, training=training, **parallel)}
        for preset, parallel in BF16[world]
    ]
    traces = devices.run_ranks(driver.engine_runs, world, runs)[0]
    for (preset, _), trace in zip(BF16[world], traces, strict=True):
        # As on the CPU.
        assert trace.losses == pytest.approx(reference(preset).losses, rel=1e-3)
        assert trace.norms == pytest.approx(reference(preset).norms, rel=1e-2)


def rounded_share(case: dict[str, Any]) -> float:
    """The share of the reduced gradient's elements that bf16 could hold, when the optimizer is about to step."""
    engine = driver.start_engine(case)
    shares: list[float] = []
    take_step = engine.engine._take_model_step

    def look_and_step(*arguments: Any) -> None:
        flat = torch.cat([g.detach().float().flatten() for g in reduced_gradients(engine.engine.optimizer)])
        flat = flat[flat != 0]
        shares.append(float((flat.bfloat16().float() == flat).float().mean()))
        take_step(*arguments)

    engine.engine._take_model_step = look_and_step
    engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))
    [share] = shares
    return share


def reduced_gradients(optimizer: Any) -> list[Tensor]:
    """Where each of DeepSpeed's optimizers keeps what it steps with."""
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):  # BF16_Optimizer, of ZeRO-1
        return list(optimizer.fp32_groups_gradient_flat_partition)
    return [gradient for group in optimizer.averaged_gradients.values() for gradient in group]


def rounded_shares(cases: list[dict[str, Any]]) -> list[float]:
    return [rounded_share(case) for case in cases]


@pytest.mark.parametrize("world", [1, 2])
def test_gradients_stay_in_fp32(world: int) -> None:
    """A few sums are bf16-valued by chance; where the reduction rounds, all are."""
    training = {"precision": "bf16", "micro_batch_size": 1}
    cases = [
        devices.settings({"preset": preset}, training=training, zero_stage=zero, data=world)
        for preset, zero in (("gpt", 1), ("llama", 1), ("gpt", 2), ("llama", 3))
    ]
    for shares in devices.run_ranks(rounded_shares, world, cases):
        assert max(shares) < 0.5, shares


def overflowing_steps(cases: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """fp16 steps of each case from a loss scale that must overflow; the last third once more from a checkpoint."""
    return [_overflowing_steps(case, f"{folder}/{number}") for number, case in enumerate(cases)]


def _overflowing_steps(case: dict[str, Any], folder: str) -> dict[str, Any]:
    from deepspeed.accelerator import get_accelerator

    if not devices.ON_CUDA:
        # DeepSpeed asks for fp16 products in hardware; slow ones serve here.
        type(get_accelerator()).is_fp16_supported = lambda _: True
    half = 2 * FP16_STEPS // 3
    engine = driver.start_engine(case)

    def steps(numbers: range) -> list[tuple[float, float, float, int]]:
        taken = []
        for step in numbers:
            samples = driver.batches()[step % driver.STEPS]
            engine.train_step(driver.micro_batches(engine, samples), driver.at_step(step))
            loss, norm = float(engine.loss()), engine.gradient_norm()
            taken.append(
                (loss, norm, float(engine.engine.optimizer.loss_scaler.cur_scale), engine.engine.skipped_steps)
            )
        return taken

    before = steps(range(half))
    questions.save_engine(engine, folder, half, skipped=engine.engine.skipped_steps)
    after = steps(range(half, FP16_STEPS))
    engine = driver.start_engine(case)
    questions.load_engine(engine, folder)
    return {"before": before, "after": after, "resumed": steps(range(half, FP16_STEPS))}


def test_fp16_skips_what_overflows_and_recovers(tmp_path: Path) -> None:
    training = {"precision": "fp16", "steps": FP16_STEPS}
    cases = [devices.settings({"preset": "gpt"}, training=training, zero_stage=zero) for zero in (1, 2, 3)]
    for case in cases:
        case["deepspeed"] = {"initial_scale_power": OVERFLOWING_POWER}
    for seen in devices.run_ranks(overflowing_steps, 1, cases, str(tmp_path), timeout=240)[0]:
        print(seen)
        steps = seen["before"] + seen["after"]
        assert all(math.isfinite(loss) for loss, _, _, _ in steps)
        *_, (last, _, scale, skipped) = steps
        # fp16 ends at 2^16; the largest gradients are near 1, of single tokens near 2^-6. Some steps must be left.
        assert 2**22 >= scale > 1
        assert OVERFLOWING_POWER - 22 <= skipped <= FP16_STEPS - 3
        assert steps[0][0] == pytest.approx(reference("gpt").losses[0], rel=4e-3)
        assert last < steps[0][0]
        # The scale and its count of good steps came back with the weights.
        assert [step[2] for step in seen["resumed"]] == [step[2] for step in seen["after"]]
        assert [s[0] for s in seen["resumed"]] == pytest.approx([s[0] for s in seen["after"]], rel=1e-3)
