"""`training.deterministic`: the same seed, the same bits."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import commands
from tests.harness import run_distributed

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "data 2, ZeRO-3": (2, {"zero_stage": 3}),
}


def run_and_gather(argv: list[str], threads: int) -> tuple[int, tuple[Any, ...], dict[str, torch.Tensor] | None]:
    """`megaqk ARGV` in a process that a launcher has given so many threads: what it has set, and its last weights."""
    from megaqk.training.trainer import Hook, Trainer
    from tests.distributed.gathering import gather_parameters

    torch.set_num_threads(threads)
    weights = None

    class Gathering(Hook):
        def end(self, run: Trainer) -> None:
            nonlocal weights
            weights = gather_parameters(run.engine)

    status = commands.run_with(argv, Gathering())
    variables = [
        os.environ.get(name) for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "TORCHINDUCTOR_DETERMINISTIC")
    ]
    return status, (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), *variables), weights


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_bits(name: str, tmp_path: Path, write_config: Callable[..., Path]) -> None:
    world, parallel = CASES[name]
    losses, ends = [], []
    for threads in (1, 3):
        config = write_config(
            tmp_path / str(threads),
            parallel=parallel,
            model={"dropout": 0.1, "attention_dropout": 0.1},
            training={"deterministic": True, "steps": 4},
            checkpoint={"every": 0},
            evaluation={"every": 0},
        )
        argv = ["pretrain", str(config)]
        results = run_distributed(run_and_gather, world, argv, threads, init=False, timeout=100)
        assert [result[:2] for result in results] == [(0, (True, 1, ":4096:8", "Ring", "1"))] * world
        lines = (config.parent / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([(key, value) for line in map(json.loads, lines) for key, value in line.items() if "loss" in key])
        ends.append(results[0][2])
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]
    assert ends[0]
    assert [key for key, weight in ends[0].items() if not torch.equal(weight, ends[1][key])] == []


def test_without_the_key_nothing_is_set(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    argv = ["pretrain", str(write_config(tmp_path, training={"steps": 1, "global_batch_size": 2}))]
    [(status, found, _)] = run_distributed(
        run_and_gather, 1, [*argv, "schedule.warmup_steps=0"], 3, init=False, timeout=60
    )
    assert (status, found) == (0, (False, 3, None, None, None))
