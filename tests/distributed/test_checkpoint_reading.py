"""What a checkpoint takes: memory for a rank's own part alone, and nothing of DeepSpeed to read weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import driver, questions, resident
from tests.harness import run_distributed

MIB = 1 << 20
WIDTH, DEPTH, SAMPLES = 512, 4, 4
LARGE = {"preset": "gpt", "num_layers": DEPTH, "hidden_size": WIDTH, "num_heads": 8, "head_dim": WIDTH // 8}


def large_case(data: int) -> dict[str, Any]:
    training = {"global_batch_size": SAMPLES, "micro_batch_size": SAMPLES // data}
    case = driver.settings(LARGE, training=training, data=data, zero_stage=3)
    # A few weights at a time are whole, so that what else there is shows.
    return case | {"deepspeed": {"stage3_prefetch_bucket_size": 0}}


def memory_of(folder: Path, case: dict[str, Any], load: bool) -> tuple[int, int, int]:
    """Train a step or load, and save: bytes that loading and saving add to this rank, and those of its own state."""
    resident.free_at_once()
    engine = driver.start_engine(case)
    from megaqk.training.optimizer_state import held_parts
    from megaqk.training.run_checkpoints import RunCheckpoints

    checkpoints = RunCheckpoints(folder, engine, questions.DATA)
    before = resident.resident_bytes()
    if load:
        assert checkpoints.load() is not None
    else:
        engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))
    loading, before = resident.peak_bytes() - before, resident.resident_bytes()
    checkpoints.save(driver.at_step(1), {}, None)
    checkpoints.wait()
    return loading, resident.peak_bytes() - before, sum(4 * part.box.numel for part in held_parts(engine))


def test_no_rank_holds_more_than_its_part(tmp_path: Path) -> None:
    run_distributed(memory_of, 2, tmp_path, large_case(2), False, init=False, timeout=120)
    newest = Checkpoint(tmp_path / "checkpoints" / "step-1")
    whole = sum(4 * newest.weight(name).numel() for name in newest.parameters)
    for loading, saving, own in run_distributed(memory_of, 4, tmp_path, large_case(4), True, init=False, timeout=120):
        # The moments are new, the weights were there; beside them a piece of 2 MiB for each thread that reads.
        assert loading < 2 / 3 * own + 16 * MIB < 2 / 3 * own + whole / 2
        assert saving < 8 * MIB


def saved_and_gathered(folder: Path, case: dict[str, Any]) -> dict[str, Tensor] | None:
    engine = driver.start_engine(case)
    from megaqk.training.run_checkpoints import RunCheckpoints
    from tests.distributed.gathering import gather_parameters

    engine.train_step(driver.micro_batches(engine, driver.batches()[0]), driver.at_step(0))
    checkpoints = RunCheckpoints(folder, engine, questions.DATA)
    checkpoints.save(driver.at_step(1), {}, None)
    checkpoints.wait()
    return gather_parameters(engine)


READER = """
import sys, torch
from pathlib import Path
from megaqk.checkpoint.reader import Checkpoint
checkpoint = Checkpoint(Path(sys.argv[1]))
torch.save({name: checkpoint.weight(name) for name in checkpoint.parameters}, sys.argv[2])
assert not {"deepspeed", "megaqk.training", "megaqk.parallel"} & set(sys.modules)
assert not torch.distributed.is_initialized()
"""


def test_one_process_reads_the_weights(tmp_path: Path) -> None:
    case = driver.settings({"preset": "gpt"}, tensor=2, data=2, zero_stage=3)
    gathered = run_distributed(saved_and_gathered, 4, tmp_path, case, init=False)[0]
    folder, file = tmp_path / "checkpoints" / "step-1", tmp_path / "weights"
    subprocess.run([sys.executable, "-c", READER, str(folder), str(file)], check=True, timeout=60)
    read = torch.load(file, weights_only=True)
    assert read.keys() == gathered.keys()
    for name, weight in gathered.items():
        assert torch.equal(read[name], weight), name

    checkpoint = Checkpoint(folder)
    for file_name, pieces in checkpoint.index.files.items():
        with safe_open(folder / file_name, "pt") as opened:
            assert len(opened.keys()) == len(pieces)
            for piece in pieces:
                ends = zip(piece.box.first, piece.box.shape, strict=True)
                place = tuple(slice(first, first + length) for first, length in ends)
                key = ",".join(f"{one.start}:{one.stop}" for one in place)
                assert torch.equal(opened.get_tensor(f"{piece.tensor}[{key}]"), checkpoint.tensor(piece.tensor)[place])
