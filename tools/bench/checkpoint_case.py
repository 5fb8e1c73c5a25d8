"""One size of `checkpoint.py`, measured in a process of its own; prints its rounds as JSON."""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from train_case import busy_seconds

SHAPES = {  # blocks of 12 x width^2 parameters
    "10M": {"num_layers": 8, "hidden_size": 320},
    "100M": {"num_layers": 8, "hidden_size": 1024},
    "500M": {"num_layers": 10, "hidden_size": 2048},
}
VOCABULARY, LENGTH = 512, 8
DATA = {"sequence_length": LENGTH, "seed": 0, "separate_documents": False, "tokenizer": "", "corpora": [], "phases": []}


def trained_engine(size: str) -> Any:
    """An engine that has taken one tiny step: its optimizer has its state."""
    from megaqk.config.root import Config
    from megaqk.model.batch import plain_positions
    from megaqk.model.vocab_size import Vocabulary
    from megaqk.parallel.world import World
    from megaqk.runtime.launch import read_launch

    training = {"global_batch_size": 1, "micro_batch_size": 1, "sequence_length": LENGTH, "precision": "fp32"}
    model = {"preset": "gpt", "num_heads": 8, **SHAPES[size]}
    config = Config.model_validate({"model": model, "training": training, "checkpoint": {"keep": 1}})
    world = World(config, read_launch()).connect()
    # Importing DeepSpeed looks for a device, which `connect` has settled.
    from megaqk.training.engine import TrainingEngine
    from megaqk.training.progress import Progress

    engine = TrainingEngine(config, world, Vocabulary(tokens=VOCABULARY, rows=VOCABULARY))
    tokens = torch.randint(VOCABULARY, (1, LENGTH + 1))
    inputs = tokens[:, :-1].contiguous()
    engine.train_step(iter([((inputs, plain_positions(inputs)), tokens[:, 1:].contiguous())]), Progress())
    return engine


def seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def forget(folder: Path) -> None:
    """Have the kernel read from the disk again what was written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open() as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measure_ours(engine: Any, folder: Path, number: int) -> dict[str, float]:
    from megaqk.training.progress import Progress
    from megaqk.training.run_checkpoints import RunCheckpoints

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest is now what there is
    before = status("VmRSS")
    checkpoints = RunCheckpoints(folder, engine, DATA)
    progress = Progress(step=number + 1, skipped=number)  # one step has been taken
    began = time.perf_counter()
    checkpoints.save(progress, {}, None)
    stall = time.perf_counter() - began
    checkpoints.wait()
    save = time.perf_counter() - began
    saving = status("VmHWM") - before
    forget(folder)
    load = seconds(checkpoints.load)
    return {"stall": stall, "save": save, "load": load, "saving": saving, "loading": status("VmHWM") - before}


def measure_torch(engine: Any, folder: Path, number: int) -> dict[str, float]:
    path = folder / f"{number}.pt"

    def save() -> None:
        with path.open("wb") as file:
            torch.save({"model": engine.module.state_dict(), "optimizer": engine.engine.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        for older in set(folder.iterdir()) - {path}:
            older.unlink()

    saved = seconds(save)
    forget(folder)
    return {"torch_save": saved, "torch_load": seconds(lambda: torch.load(path, weights_only=True))}


def main() -> None:
    size, rounds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    engine = trained_engine(size)
    numel, theirs = sum(info.numel for info in engine.inventory), folder / "torch"
    theirs.mkdir()
    cases = (partial(measure_ours, engine, folder), partial(measure_torch, engine, theirs))
    measured = []
    for number in range(rounds):
        one: dict[str, float] = {"state_bytes": 12.0 * numel}
        began = time.perf_counter(), busy_seconds(), time.process_time()
        for case in cases[:: 1 if number % 2 == 0 else -1]:
            one |= case(number)
        ended = time.perf_counter(), busy_seconds(), time.process_time()
        wall, busy, own = (now - then for then, now in zip(began, ended, strict=True))
        measured.append(one | {"others": max(0.0, busy - own) / wall})
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
