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


@pytest.mark.parametrize(("asked", "refused"), [(True, True), (None, False)])
def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, asked: bool | None, refused: bool) -> None:
    config = build_config({"training": {"compile": asked}})
    assert missing(config, torch.device("cpu")) == []
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert [line.split(":")[0] for line in missing(config, torch.device("cpu"))] == ["training.compile"] * refused


@pytest.mark.parametrize(("name", "value"), [("NCCL_ALGO", "NVLS"), ("CUBLAS_WORKSPACE_CONFIG", ":0:0")])
def test_what_would_sum_in_another_order_each_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    config = build_config({"training": {"deterministic": True, "compile": False}})
    for variable in ("NCCL_ALGO", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    assert missing(config, torch.device("cuda")) == []
    monkeypatch.setenv(name, value)
    [line] = missing(config, torch.device("cuda"))
    assert line.startswith(f"{name} = {value}: must be unset or one of ")
    assert "training.deterministic = true" in line
    assert missing(config, torch.device("cpu")) == []
    assert missing(build_config({"training": {"compile": False}}), torch.device("cuda")) == []
