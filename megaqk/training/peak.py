"""Peak floating-point rate of a device, against which utilisation is reported."""

import time

import torch
import torch.distributed as dist
from torch.nn import functional as F

# Dense peaks from NVIDIA's data sheets, in FLOP/s: fp32 without tensor cores, then 16-bit with them.
_CUDA_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 80e12, 2250e12),
    ("H200", 67e12, 989e12),
    ("H100 PCIe", 51e12, 756e12),
    ("H100 NVL", 60e12, 835e12),
    ("H100", 67e12, 989e12),
    ("A100", 19.5e12, 312e12),
    ("L40S", 91.6e12, 362e12),
    ("A10", 31.2e12, 125e12),
    ("V100", 15.7e12, 125e12),
)


def looked_up_peak(device_name: str, precision: str) -> float | None:
    """Data-sheet peak in FLOP/s, or None for a device that is not in the table."""
    for name, fp32, half in _CUDA_PEAKS:
        if name in device_name:
            return fp32 if precision == "fp32" else half
    return None


def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """Rate of square matrix products in FLOP/s, with the kernels and the threads that training will use.

    The best of three windows counts. Each is longer than the scheduler's time slice, so that processes that take
    turns on one core do not each count all of it.
    """
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    F.linear(a, b)
    best = 0.0
    for _ in range(3):
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            F.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            products += 1
        best = max(best, products * 2.0 * size**3 / (time.perf_counter() - start))
    return best


def job_peak(device: torch.device, precision: str) -> float:
    """Peak of all processes together in FLOP/s; every rank must call it.

    CUDA devices are looked up. Others, and unknown ones, are measured while all ranks measure, so that processes
    that share cores do not count them twice.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    peak = looked_up_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if peak is None:
        dist.barrier()
        peak = measured_peak(device, dtype)
    total = torch.tensor(peak, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)
