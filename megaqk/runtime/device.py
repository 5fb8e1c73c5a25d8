"""The one place that chooses devices and backends, and starts the process group."""

import os
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist

from megaqk.errors import UserError
from megaqk.runtime import rendezvous
from megaqk.runtime.launch import Launch
from megaqk.runtime.logs import quiet

REPEATABLE = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
}
"""Variables on CUDA and their values with which products and reductions repeat themselves; the first is ours."""


def choose_device(launch: Launch = Launch()) -> torch.device:
    """The device of a process: its own GPU where there is CUDA, else the CPU.

    Raises:
        UserError: As `gpu_index`.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", gpu_index(launch, visible=torch.cuda.device_count()))


def device_named(name: str | None) -> torch.device:
    """The device that `--device` names; None is that of `choose_device`.

    Raises:
        UserError: There is none of this name here.
    """
    if name is None:
        return choose_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"--device = {name}: must be a device of this machine ({reason})") from error


def gpu_index(launch: Launch, *, visible: int) -> int:
    """The GPU of a process among those that it sees.

    Raises:
        UserError: The processes of its machine would have to share GPUs.
    """
    if visible == 1 and launch.binds_gpus:  # each task sees its own alone
        return 0
    if launch.local_size > visible:
        raise UserError(
            f"{launch.local_size} processes on this machine, which sees {visible} GPUs (CUDA_VISIBLE_DEVICES): must be "
            "at most one process for each GPU"
        )
    return launch.local_rank


def start_process_group(launch: Launch) -> torch.device:
    """Join the other processes through DeepSpeed, over NCCL on CUDA and gloo on the CPU.

    Returns:
        The device of this process.
    """
    launch.export()
    device = choose_device(launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # DeepSpeed reads this; without it a CPU-only start guesses from what happens to be installed.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    from deepspeed.runtime import compiler
    from deepspeed.utils import logger

    # To ask whether an optimizer is its Muon, DeepSpeed imports it, which compiles kernels: a second of imports.
    compiled, compiler.compile = compiler.compile, lambda: lambda kernel: kernel
    from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401

    compiler.compile = compiled
    logger.setLevel("WARNING")
    # Several a step under ZeRO-3: names that torch has changed and DeepSpeed still calls.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # DeepSpeed asks this table whether to compile a shared-memory operator when it starts on a CPU: a minute of
    # compiling, behind a lock that outlives a killed process, for an operator that only inference calls.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    if not dist.is_initialized() or not deepspeed.comm.is_initialized():
        with quiet():
            deepspeed.init_distributed(
                dist_backend="nccl" if device.type == "cuda" else "gloo",
                init_method=rendezvous.URL if launch.launcher == "torchrun" else None,
                verbose=False,
            )
    return device


def be_deterministic() -> None:
    """Have this process compute the same again from the same; for its rest, and before it uses CUDA or NCCL."""
    for name, values in REPEATABLE.items():
        os.environ.setdefault(name, values[0])
    # The two halves of `use_deterministic_algorithms`, which would import the compiler for the second: that it measures
    # nothing to choose a kernel.
    torch.set_deterministic_debug_mode("error")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if not torch.cuda.is_available():
        # Sums are split by thread, of which a launcher may give a process more or fewer.
        torch.set_num_threads(1)


def prefer_attention(kernel: str, device: torch.device) -> None:
    """Have torch try a kernel of attention before its others, for the rest of this process; only CUDA has a choice.

    On Hopper cuDNN's is 1.7 to 2.3 times as fast as the flash attention in torch, which is torch's own first.
    """
    if device.type != "cuda":
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    # Torch excludes cuDNN's where it is to be deterministic.
    hopper = torch.cuda.get_device_capability(device)[0] == 9 and not torch.are_deterministic_algorithms_enabled()
    first = names["cudnn" if hopper else "flash"] if kernel == "auto" else names[kernel]
    others = [backend for name, backend in names.items() if backend is not first and (name != "cudnn" or hopper)]
    sdpa_kernel([first, *others], set_priority=True).__enter__()


def host_buffer(elements: int, device: torch.device) -> torch.Tensor:
    """fp32 memory of the host that a device copies into beside its work: whole pages, all of them there already."""
    page = 4096
    whole = torch.empty(elements + page // 4, pin_memory=device.type == "cuda").zero_()
    first = -whole.data_ptr() % page // 4
    return whole[first : first + elements]


def copied(device: torch.device) -> Callable[[], None]:
    """What waits, in any thread, until the device has done what it has been asked so far, copies to the host too."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.current_stream(device).record_event()
    return event.synchronize  # type: ignore[no-any-return]


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory of this process so far: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
