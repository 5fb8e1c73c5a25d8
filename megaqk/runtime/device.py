"""The one place that chooses devices and backends, and starts the process group."""

import os
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megaqk.errors import UserError
from megaqk.runtime.extensions import ensure_cpu_extensions
from megaqk.runtime.quiet import quiet


@dataclass(frozen=True)
class ProcessInfo:
    """This process in the job, as torchrun (or a single start) describes it."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


def check_precision(precision: str) -> None:
    """Refuse a precision that has no kernels here.

    Raises:
        UserError: For fp16 without a CUDA device.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision = fp16: needs a CUDA device; use bf16 or fp32 on a CPU")


def start_process_group() -> ProcessInfo:
    """Initialise torch.distributed through DeepSpeed: NCCL on CUDA, gloo on CPU.

    A process started without torchrun becomes a world of one on a free local port.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        # DeepSpeed reads this; without it a CPU-only start guesses from what happens to be installed.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    with quiet():
        ensure_cpu_extensions()
        if not dist.is_initialized():
            deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return ProcessInfo(dist.get_rank(), dist.get_world_size(), local_rank, device)


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory of this process so far: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
