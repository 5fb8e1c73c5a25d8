"""bf16 with fp32 accumulation.

It follows a plain loop that accumulates in fp32 closely, and the fp32 loop within bf16's rounding, on every kind of
topology.
"""

import functools
from typing import Any

import pytest
import torch

from megaqk.model.batch import plain_positions
from tests.distributed import driver, questions
from tests.harness import run_distributed

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "one process": ("gpt", 1, {"zero_stage": 1}),
    "tensor 2 x pipeline 2": ("gpt", 4, {"tensor": 2, "pipeline": 2, "sequence": True, "zero_stage": 1}),
    "data 2, ZeRO-2": ("gpt", 2, {"zero_stage": 2, "data": 2}),
    "data 2, ZeRO-3, llama": ("llama", 2, {"zero_stage": 3, "data": 2}),
    "tensor 2 x data 2, ZeRO-3": ("gpt", 4, {"tensor": 2, "zero_stage": 3, "data": 2}),
}

MICRO_BATCH = 2


@functools.cache
def reference(preset: str) -> driver.Trace:
    return driver.plain_run({"preset": preset})


@pytest.mark.parametrize("name", CASES)
def test_follows_the_fp32_loop(name: str) -> None:
    preset, world, parallel = CASES[name]
    case = driver.settings({"preset": preset}, training={"precision": "bf16"}, **parallel)
    trace = run_distributed(driver.engine_run, world, case, init=False, timeout=120)[0]
    # A bf16 mantissa has 8 bits, 2^-9 = 2e-3 for one rounding, which the sums over tokens and elements average out.
    assert trace.losses == pytest.approx(reference(preset).losses, rel=1e-3)
    assert trace.norms == pytest.approx(reference(preset).norms, rel=1e-2)
    # And it is bf16: fp32 agrees to 1e-6.
    assert trace.losses != pytest.approx(reference(preset).losses, rel=1e-6)


WHOLE_REPLICAS: dict[str, tuple[int, dict[str, Any]]] = {
    "ZeRO-1": (1, {"zero_stage": 1}),
    "ZeRO-2": (1, {"zero_stage": 2}),
    "ZeRO-3": (1, {"zero_stage": 3}),
    "pipeline 2": (2, {"pipeline": 2}),
    "data 2, ZeRO-1": (2, {"zero_stage": 1, "data": 2}),
    "data 2, ZeRO-2": (2, {"zero_stage": 2, "data": 2}),
    "data 2, ZeRO-3": (2, {"zero_stage": 3, "data": 2}),
}


@functools.cache
def plain_bf16(preset: str) -> driver.Trace:
    """The plain loop with bf16 weights, gradients summed in fp32 over equal micro-batches, and fp32 masters."""
    decoder = driver.plain_decoder({"preset": preset})
    parameters = decoder.global_parameters()
    masters = {name: p.detach().bfloat16().float() for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.data = parameter.data.bfloat16()
    groups = [{"params": [m], "name": n, "weight_decay": driver.DECAY * (m.dim() > 1)} for n, m in masters.items()]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=driver.BETAS, eps=driver.EPS)
    losses, norms = [], []
    for step, samples in enumerate(driver.batches()):
        for group in optimizer.param_groups:
            held = driver.held(step) if driver.is_upper_qk(group["name"]) else 1.0
            group["lr"] = driver.learning_rate(step) * held
        total = 0.0
        for master in masters.values():
            master.grad = torch.zeros_like(master)
        micro_batches = samples.split(MICRO_BATCH)
        for part in micro_batches:
            tokens, labels = part[:, :-1], part[:, 1:]
            loss = decoder((tokens, plain_positions(tokens)), (labels, torch.tensor(1 / labels.numel())))
            (loss / len(micro_batches)).backward()
            total += loss.item() / len(micro_batches)
            for name, parameter in parameters.items():
                masters[name].grad += parameter.grad.float()
                parameter.grad = None
        losses.append(total)
        norms.append(torch.nn.utils.clip_grad_norm_(masters.values(), driver.CLIP).item())
        optimizer.step()
        for name, parameter in parameters.items():
            parameter.data.copy_(masters[name])
    return driver.Trace(losses, norms, {name: p.detach().clone() for name, p in parameters.items()})


@pytest.mark.parametrize("name", WHOLE_REPLICAS)
def test_gradients_are_accumulated_and_summed_in_fp32(name: str) -> None:
    world, parallel = WHOLE_REPLICAS[name]
    training = {"precision": "bf16", "micro_batch_size": MICRO_BATCH}
    # Without biases: the gradient of a key's is rounding alone, which Adam makes a whole step of.
    case = driver.settings({"preset": "llama"}, training=training, **parallel)
    trace = run_distributed(driver.engine_run, world, case, init=False, timeout=120)[0]
    # Only while no weight has been rounded to another bf16 value, which is soon 2^-9 in some of them.
    assert trace.losses[:3] == pytest.approx(plain_bf16("llama").losses[:3], rel=1e-6)
    assert trace.norms[:3] == pytest.approx(plain_bf16("llama").norms[:3], rel=1e-6)
    assert trace.losses == pytest.approx(plain_bf16("llama").losses, rel=1e-3)


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero_stage": 1, "data": 2}),
        # Parts of gradients to sum over tensor ranks, a tied embedding's over stages, a group that one stage lacks.
        (4, {"zero_stage": 1, "tensor": 2, "pipeline": 2, "sequence": True}),
    ],
    ids=str,
)
def test_gradients_added_up_at_once_change_nothing(world: int, parallel: dict[str, Any]) -> None:
    case = driver.settings({"preset": "gpt"}, training={"precision": "bf16"}, **parallel)
    runs = [{"case": case}, {"case": case | {"deepspeed": {"immediate_grad_update": True}}}]
    after, at_once = run_distributed(driver.engine_runs, world, runs, init=False, timeout=120)[0]
    assert at_once.losses == after.losses
    assert at_once.norms == after.norms
    for name, weight in after.weights.items():
        assert torch.equal(at_once.weights[name], weight), name


@pytest.mark.parametrize(
    ("world", "parallel"), [(1, {"zero_stage": 1}), (2, {"zero_stage": 3}), (2, {"pipeline": 2})], ids=str
)
def test_rotary_tables_are_those_of_fp32(world: int, parallel: dict[str, Any]) -> None:
    """A bf16 position is off by up to 2 at 1,000: the model would be another one."""
    length, training = 1024, {"precision": "bf16", "sequence_length": 1024, "micro_batch_size": 1}
    case = driver.settings({"preset": "llama"}, training=training, **parallel)
    frequencies = 10000.0 ** -(torch.arange(0, 4, 2, dtype=torch.float64) / 4)  # head_dim 4
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    for tables in run_distributed(questions.rotary_tables, world, case, init=False, timeout=120):
        assert tables
        for cos, sin in tables:
            assert cos.dtype == sin.dtype == torch.float32
            # fp32 angles up to 1,023 are good to 2^-24 x 1023 = 6e-5.
            torch.testing.assert_close(cos.double(), angles.cos(), rtol=0, atol=1e-4)
            torch.testing.assert_close(sin.double(), angles.sin(), rtol=0, atol=1e-4)
