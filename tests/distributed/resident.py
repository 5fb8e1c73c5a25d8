"""The memory that a run really takes, as the kernel sees it."""

import ctypes
import gc
from pathlib import Path
from typing import Any

import torch

from megaqk.config.root import Config
from megaqk.model.batch import plain_positions
from megaqk.model.vocab_size import Vocabulary
from megaqk.parallel.world import World
from megaqk.runtime.launch import read_launch

M_MMAP_THRESHOLD = -3


def peaks(runs: list[tuple[dict[str, Any], dict[str, Any]]], vocabulary: Vocabulary) -> list[int]:
    """Resident bytes that each of several runs adds at its highest to this process, on one rank of their world.

    Args:
        runs: Each with a smaller one of the same kind before it, which loads code and compiles kernels.
        vocabulary: Size of the vocabulary.
    """
    free_at_once()
    added = []
    for run, smaller in runs:
        print(run, flush=True)
        _train(smaller, vocabulary)
        before = resident_bytes()
        _train(run, vocabulary)
        added.append(peak_bytes() - before)
    return added


def free_at_once() -> None:
    """Make each tensor a mapping of its own, so that it leaves the process the moment it is freed, as on a GPU."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 14)


def resident_bytes() -> int:
    """What this process has, which is its highest from now on."""
    while gc.collect():  # an engine is a knot that several passes undo
        pass
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The highest since `resident_bytes`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def _train(case: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Two steps: the optimizer has its state after the first."""
    config = Config.model_validate(case)
    world = World(config, read_launch()).connect()
    # Importing DeepSpeed looks for a device, which `connect` settles first.
    from megaqk.training.engine import TrainingEngine
    from megaqk.training.progress import Progress

    training = config.training
    engine = TrainingEngine(config, world, vocabulary)
    for step in range(2):
        batches = []
        for _ in range(world.micro_batches):
            samples = torch.randint(vocabulary.tokens, (training.micro_batch_size, training.sequence_length + 1))
            tokens = samples[:, :-1].contiguous()
            batches.append(((tokens, plain_positions(tokens)), samples[:, 1:].contiguous()))
        engine.train_step(iter(batches), Progress(step=step, samples=step * training.global_batch_size, tokens=0))
