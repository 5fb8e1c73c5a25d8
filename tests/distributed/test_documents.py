"""Runs whose samples keep their documents apart: one number for a global batch, however it is divided."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.harness import run_distributed

CASES: dict[str, tuple[int, dict[str, Any], int]] = {
    "micro-batches of 8": (1, {}, 8),
    "micro-batches of 1": (1, {}, 1),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2, "sequence": True}, 1),
    "data 2": (2, {"zero_stage": 2}, 2),
}


@pytest.fixture(scope="module")
def losses(
    tmp_path_factory: pytest.TempPathFactory, write_config: Callable[..., Path], data_section: dict[str, Any]
) -> Callable[..., list[float]]:
    def run(name: str, *, separate: bool = True) -> list[float]:
        world, parallel, micro_batch = CASES[name]
        training = {
            "steps": 5,
            "global_batch_size": 8,
            "micro_batch_size": micro_batch,
            "sequence_length": 48,
            "seed": 5,
        }
        data = {**data_section, "separate_documents": separate}
        config = write_config(tmp_path_factory.mktemp("run"), parallel=parallel, training=training, data=data)
        argv = ["pretrain", str(config)]
        assert run_distributed(commands.run_command, world, argv, init=False, timeout=120) == [0] * world
        records = [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]
        return [record.get("loss", record.get("valid_loss")) for record in records]

    return run


def test_the_loss_does_not_depend_on_the_division(losses: Callable[..., list[float]]) -> None:
    reference = losses("micro-batches of 8")
    assert len(reference) == 6  # five steps and a validation
    for name in list(CASES)[1:]:
        assert losses(name) == pytest.approx(reference, rel=1e-5), name
    assert losses("micro-batches of 8", separate=False) != pytest.approx(reference, rel=1e-3)
