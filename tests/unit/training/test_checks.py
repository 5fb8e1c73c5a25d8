import pytest
import torch

from megaqk.config.loading import build_config
from megaqk.training.checks import missing


@pytest.mark.parametrize(
    ("device", "offload", "refused"), [("cuda", "none", True), ("cuda", "cpu", False), ("cpu", "none", False)]
)
def test_an_optimizer_on_the_host_has_its_state_there(device: str, offload: str, refused: bool) -> None:
    """DeepSpeed finds it in the first step: its CPUAdam takes no CUDA tensor."""
    config = build_config(
        {"optimizer": {"implementation": "deepspeed_cpu"}, "deepspeed": {"offload_optimizer": offload}}
    )
    lines = missing(config, torch.device(device))
    assert [line.split(": must")[0] for line in lines] == ["optimizer.implementation = deepspeed_cpu"] * refused
