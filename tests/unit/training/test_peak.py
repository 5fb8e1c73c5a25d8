import pytest
import torch
import torch.distributed as dist

from megaqk.training import peak
from tests.harness import run_distributed


@pytest.mark.parametrize(
    ("name", "precision", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H100 NVL", "fp16", 835e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A10G", "bf16", 125e12),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_peaks_of_data_sheets(name: str, precision: str, rate: "float | None") -> None:
    assert peak.looked_up_peak(name, precision) == rate


def job_peak_of_unequal_ranks() -> float:
    rank = dist.get_rank()
    peak.measured_peak = lambda *args, **kwargs: 1e9 * (rank + 1)
    return peak.job_peak(torch.device("cpu"), "fp32")


def test_the_peak_of_a_job_is_that_of_all_ranks() -> None:
    assert run_distributed(job_peak_of_unequal_ranks, 2) == [3e9, 3e9]
