import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from megaqk.training import peak
from tests.harness import run_distributed


@pytest.mark.parametrize(
    ("name", "precision", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H100 NVL", "fp16", 835e12),
        ("NVIDIA H800", "bf16", 989e12),
        ("NVIDIA H20", "bf16", 148e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA GB200", "bf16", 2500e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A800-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A10G", "bf16", 125e12),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_peaks_of_data_sheets(name: str, precision: str, rate: "float | None") -> None:
    assert peak.looked_up_peak(name, precision) == rate


def job_peak_and_rate_of_a_core() -> tuple[float, float]:
    """The second is of the time that this rank has really had, whatever else the machine does."""
    job = peak.job_peak(torch.device("cpu"), "fp32")
    a = torch.randn(1024, 1024)
    start = time.process_time()
    for _ in range(20):
        F.linear(a, a)
    return job, 20 * 2.0 * 1024**3 / (time.process_time() - start)


def test_ranks_that_share_cores_do_not_count_them_twice() -> None:
    ranks, cores = 4, len(os.sched_getaffinity(0))
    if cores >= ranks:
        pytest.skip("each rank has a core of its own")
    jobs, rates = zip(*run_distributed(job_peak_and_rate_of_a_core, ranks), strict=True)
    assert len(set(jobs)) == 1
    assert 0 < jobs[0] < 1.25 * cores * max(rates)


def job_peak_of_ranks_that_take_turns(turn: float, product: float) -> float:
    def multiply(*_: Any) -> None:
        while int(time.monotonic() / turn) % dist.get_world_size() != dist.get_rank():
            time.sleep(product / 5)
        time.sleep(product)

    peak.F = SimpleNamespace(linear=multiply)  # type: ignore[attr-defined]
    return peak.job_peak(torch.device("cpu"), "fp32")


def test_ranks_that_take_turns_on_a_core_have_one_core_together() -> None:
    """Each has the core for longer than a window lasts, so that each sees a window in which it has all of it."""
    product = 0.005
    jobs = run_distributed(job_peak_of_ranks_that_take_turns, 2, 0.3, product)
    assert 0 < jobs[0] < 1.1 * 2.0 * 1024**3 / product
