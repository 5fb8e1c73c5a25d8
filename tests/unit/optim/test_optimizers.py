"""Every implementation takes the steps of AdamW with decoupled decay, and other optimizers work beside it."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megaqk.config.loading import build_config
from megaqk.config.optimization import OptimizerConfig
from megaqk.errors import UserError
from megaqk.model.decoder import parameter_inventory
from megaqk.model.parameters import ParameterInfo
from megaqk.optim.groups import plan_groups
from megaqk.optim.optimizers import AdamW, TorchAdamW, build_optimizer, choose_implementation, remove_stale_lock

CPU = torch.device("cpu")


@pytest.mark.parametrize("implementation", ["auto", "torch", pytest.param("deepspeed_cpu", marks=pytest.mark.full)])
def test_decoupled_decay_and_the_configured_betas_and_eps(implementation: str) -> None:
    config = OptimizerConfig(implementation=implementation, lr=0.01, betas=(0.6, 0.8), eps=1e-2)
    start = torch.linspace(-1, 1, 64)
    weight = torch.nn.Parameter(start.clone())
    optimizer = AdamW(config, CPU).build([{"params": [weight], "name": "decay", "lr": 0.05, "weight_decay": 0.3}])
    expected, mean, square = start.double(), torch.zeros(64).double(), torch.zeros(64).double()
    for step in range(1, 4):
        gradient = torch.randn(64, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.6 * mean + 0.4 * gradient.double()
        square = 0.8 * square + 0.2 * gradient.double() ** 2
        expected -= 0.05 * 0.3 * expected
        expected -= 0.05 * (mean / (1 - 0.6**step)) / ((square / (1 - 0.8**step)).sqrt() + 1e-2)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["apex", "deepspeed_fused"])
def test_a_cuda_implementation_is_refused_on_a_cpu(implementation: str) -> None:
    with pytest.raises(UserError, match=rf"^optimizer.implementation = {implementation}: needs a CUDA device"):
        choose_implementation(OptimizerConfig(implementation=implementation), CPU)


class Sgd:
    """Momentum of its own; owns the output matrices of feed-forward networks."""

    name, settings = "sgd", {"momentum": 0.9}

    def owns(self, parameter: ParameterInfo) -> bool:
        return parameter.role.projection == "ffn_out" and parameter.role.decay

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def test_groups_name_their_optimizer_and_one_object_steps_them_all() -> None:
    config = build_config({"model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2}})
    groups = plan_groups(config, parameter_inventory(config, rows=8), (Sgd(),))
    assert [(group.name, group.optimizer) for group in groups] == [
        ("decay", "adamw"),
        ("no_decay", "adamw"),
        ("decay.sgd", "sgd"),
    ]
    assert groups[2].parameters == tuple(f"layers.{layer}.ffn.output.weight" for layer in (0, 1))


def trained(steps: int, joint: bool) -> tuple[list[Tensor], dict[str, Any]]:
    """Two tensors after steps on a quadratic, the first under AdamW, the second under SGD with momentum."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, generator=generator)) for _ in range(2)]
    adamw = AdamW(OptimizerConfig(), CPU)
    groups: list[dict[str, Any]] = [
        {"params": [weight], "name": name, "optimizer": name, "lr": 0.05, "weight_decay": 0.1}
        for weight, name in zip(weights, ("adamw", "sgd"), strict=True)
    ]
    if joint:
        optimizers = [build_optimizer((adamw, Sgd()), groups)]
        assert all(mine is group for mine, group in zip(optimizers[0].param_groups, groups, strict=True))
    else:
        optimizers = [adamw.build(groups[:1]), Sgd().build(groups[1:])]
    states = {}
    for step in range(steps):
        if joint and step == steps // 2:  # a checkpoint on the way
            states = optimizers[0].state_dict()
            optimizers = [build_optimizer((adamw, Sgd()), groups)]
            optimizers[0].load_state_dict(states)
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum((weight - 1).square().sum() for weight in weights).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.05 / (step + 1)
            optimizer.step()
    return [weight.detach() for weight in weights], states


def test_the_joint_optimizer_is_its_parts() -> None:
    ours, saved = trained(6, joint=True)
    apart, _ = trained(6, joint=False)
    assert all(torch.equal(a, b) for a, b in zip(ours, apart, strict=True))
    assert {frozenset(state) for state in saved["state"].values()} == {
        frozenset({"step", "exp_avg", "exp_avg_sq"}),
        frozenset({"momentum_buffer"}),
    }


def test_alone_adamw_is_not_wrapped() -> None:
    adamw = AdamW(OptimizerConfig(), CPU)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "optimizer": "adamw"}]
    assert type(build_optimizer((adamw, Sgd()), groups)) is TorchAdamW


@pytest.mark.parametrize("age", [60, 6000])
def test_the_lock_of_a_dead_build_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - age, time.time() - age))
    remove_stale_lock("cpu_adam")
    assert lock.exists() == (age == 60)
