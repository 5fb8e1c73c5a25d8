"""One measured process of `gpu.py`: the device's ceilings, or steps of one configuration with a profile by kind."""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
PROFILED_STEPS = 2

# The first that matches names the kind; on CUDA these are kernels, on a CPU operators. All else is elementwise work,
# norms and embeddings among it.
KINDS = {
    "collectives": r"nccl|c10d",
    "attention": r"flash|fmha|sdpa|scaled_dot_product|flex",
    "gemm": r"gemm|nvjet|cutlass|gemv|splitk|aten::(addmm|mm|bmm|linear)$|mkldnn_linear",
    "cross entropy": r"softmax|nll_loss|cross_entropy",
    "optimizer": r"multi_tensor_apply|adam|lamb|_foreach",
    "copies": r"memcpy|memset|copy|CatArray|aten::(cat|zero_|fill_)$",
}


def kind_of(name: str) -> str:
    """The kind of work that a kernel or an operator does, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "elementwise")


def split(events: Iterable[tuple[str, float]], steps: int, seconds: float) -> dict[str, float]:
    """Seconds of a step by kind.

    Args:
        events: Name and seconds of each kernel.
        steps: Steps in which they ran.
        seconds: Of a whole step; what no kernel fills is called gaps.
    """
    kinds = dict.fromkeys([*KINDS, "elementwise"], 0.0)
    for name, spent in events:
        kinds[kind_of(name)] += spent / steps
    return {**kinds, "gaps": max(0.0, seconds - sum(kinds.values()))}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds of one run of many that follow each other without waiting; the best of three lots."""
    lots = []
    for _ in range(4):  # the first warms up
        wait_for(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait_for(device)
        lots.append((time.perf_counter() - began) / times)
    return min(lots[1:])


def ceilings(*, dry: bool) -> dict[str, Any]:
    """FLOP/s of bf16 products, among them shapes that differ in alignment alone, and bytes/s of copies."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale, times = (16, 2) if dry else (1, 20)
    products = {}
    for rows, inner, columns in (
        (8192, 8192, 8192),
        (16384, 1024, 50257),
        (16384, 1024, 50304),
        (16384, 1024, 2728),
        (16384, 1024, 682),
        (16384, 1024, 704),
    ):
        rows //= scale
        a = torch.randn(rows, inner, device=device).bfloat16()
        b = torch.randn(columns // scale, inner, device=device).bfloat16()
        spent = best_seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b), device, times)  # type: ignore[misc]
        products[f"{rows} x {inner} x {columns // scale}"] = 2.0 * rows * inner * (columns // scale) / spent
    block = torch.empty(2**28 // scale, device=device)
    other = torch.empty_like(block)
    copies = {"device, read and written": 2 * block.nbytes / best_seconds(lambda: other.copy_(block), device, times)}
    for kind in ("pageable", "pinned") if device.type == "cuda" else ("pageable",):
        host = torch.empty(2**24, pin_memory=kind == "pinned")
        target = torch.empty_like(host, device=device)
        spent = best_seconds(lambda h=host, t=target: t.copy_(h, non_blocking=True), device, times)  # type: ignore[misc]
        copies[f"{kind} host memory to device"] = host.nbytes / spent
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "products": products, "copies": copies}


def train(file: Path, overrides: list[str], tokens: int, steps: int, *, profiled: bool) -> dict[str, Any]:
    """Steps of a configuration on random tokens."""
    from megaqk.config.loading import load_config
    from megaqk.model.batch import plain_positions
    from megaqk.model.flops import flops_per_token
    from megaqk.model.vocab_size import Vocabulary
    from megaqk.parallel.world import World
    from megaqk.runtime.device import peak_memory_bytes
    from megaqk.runtime.launch import read_launch

    config = load_config(file, overrides)
    world = World(config, read_launch()).connect()
    from megaqk.training.engine import TrainingEngine
    from megaqk.training.progress import Progress

    training, device = config.training, world.device
    engine = TrainingEngine(config, world, Vocabulary(tokens=tokens, rows=-(-tokens // 128) * 128))
    generator = torch.Generator().manual_seed(0)

    def micro_batch() -> tuple[tuple[Tensor, Tensor], Tensor]:
        shape = (training.micro_batch_size, training.sequence_length + 1)
        samples = torch.randint(tokens, shape, generator=generator)
        inputs = samples[:, :-1].contiguous()
        positions = plain_positions(inputs)
        if config.data.separate_documents:
            positions = positions % (training.sequence_length // 4)
        return (inputs, positions), samples[:, 1:].contiguous()

    batches = [micro_batch() for _ in range(world.micro_batches)]

    def step(number: int) -> float:
        samples = number * training.global_batch_size
        began = time.perf_counter()
        progress = Progress(step=number, samples=samples, tokens=samples * training.sequence_length)
        engine.train_step(iter(batches), progress)
        wait_for(device)
        return time.perf_counter() - began

    spent = [step(number) for number in range(WARM_UP + steps)][WARM_UP:]
    result = {
        "seconds": statistics.median(spent),
        "tokens": training.tokens_per_step,
        "flops_per_token": flops_per_token(config.model, engine.inventory, training.sequence_length),
        "parameters": sum(info.numel for info in engine.inventory),
        "loss": float(engine.loss()),
        "peak_memory_bytes": peak_memory_bytes(device),
    }
    if profiled:
        result["split"] = profile(lambda: [step(number) for number in range(PROFILED_STEPS)], device, result["seconds"])
    return result


def profile(work: Callable[[], object], device: torch.device, seconds: float) -> dict[str, float]:
    """Seconds of a step by kind, of steps that take `seconds` when nobody looks."""
    with torch.profiler.profile() as recorded:
        work()
    on_device = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    # Ranges that somebody has named span kernels that are listed too.
    averages = [
        e for e in recorded.key_averages() if e.device_type == on_device and not getattr(e, "is_user_annotation", False)
    ]
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return split(((e.key, getattr(e, own) / 1e6) for e in averages), PROFILED_STEPS, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="a configuration to train; without it the ceilings are measured")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tokens", type=int, default=50257, help="size of the vocabulary")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.config is None:
        result = ceilings(dry=arguments.dry_run)
    else:
        settings = arguments.config, arguments.set, arguments.tokens, arguments.steps
        result = train(*settings, profiled=arguments.profile)
    arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
