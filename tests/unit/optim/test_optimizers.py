"""Each implementation that runs on a CPU takes the steps of AdamW with decoupled decay, under settings of its own."""

import pytest
import torch

from megaqk.config.optimization import OptimizerConfig
from megaqk.errors import UserError
from megaqk.optim.optimizers import AdamW, choose_implementation

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
