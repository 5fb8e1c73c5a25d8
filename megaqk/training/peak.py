"""Peak floating-point rate of a device, against which utilisation is reported."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn import functional as F

# Dense peaks from NVIDIA's data sheets, in FLOP/s: fp32 without tensor cores, then 16-bit with them.
_CUDA_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("GB200", 80e12, 2500e12),
    ("B200", 80e12, 2250e12),
    ("H200", 67e12, 989e12),
    ("H100 PCIe", 51e12, 756e12),
    ("H100 NVL", 60e12, 835e12),
    ("H100", 67e12, 989e12),
    ("H800 PCIe", 51e12, 756e12),
    ("H800", 67e12, 989e12),
    ("H20", 44e12, 148e12),
    ("A100", 19.5e12, 312e12),
    ("A800", 19.5e12, 312e12),
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


def products(device: torch.device, dtype: torch.dtype) -> Callable[[float], float]:
    """Return a function that multiplies square matrices for so many seconds and returns the FLOPs that it did."""
    # On a GPU large, and several at once, so that neither the launch nor the wait for the end is much of it.
    size, at_once = (8192, 8) if device.type == "cuda" else (1024, 1)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def multiply(seconds: float) -> float:
        start, done = time.perf_counter(), 0.0
        while time.perf_counter() - start < seconds:
            for _ in range(at_once):
                F.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            done += at_once * 2.0 * size**3
        return done

    return multiply


def measured_peak(device: torch.device, dtype: torch.dtype, *, windows: int = 3, seconds: float = 0.06) -> float:
    """Rate of square matrix products of all processes together in FLOP/s, with the kernels of training.

    All ranks multiply at the same time, and what they have done counts over the time from the first rank's beginning to
    the last one's end: processes that take turns on a core do not each count all of it. The best of a few such windows
    counts.
    """
    multiply = products(device, dtype)
    work = torch.zeros((), dtype=torch.float64, device=device)
    best = 0.0
    for _ in range(windows):
        work.zero_()
        dist.barrier()
        start = time.perf_counter()
        work += multiply(seconds)
        dist.all_reduce(work)
        total = float(work)
        elapsed = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=device)
        dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
        best = max(best, total / float(elapsed))
    return best


def job_peak(device: torch.device, precision: str) -> float:
    """Peak of all processes together in FLOP/s; every rank must call it.

    CUDA devices are looked up. Others, and unknown ones, are measured.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    peak = looked_up_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    # Ranks of one job may have different devices.
    total = torch.tensor([peak or 0.0, float(peak is None)], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total[0]) if not total[1] else measured_peak(device, dtype)
