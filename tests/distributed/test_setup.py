"""What a run does not do before its first step."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands
from tests.harness import run_distributed

# Not under ZeRO-3, where DeepSpeed imports it, nor with recompute = full, where torch does.
CASES: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "one process": (1, {}),
    "without ZeRO": (1, {"parallel": {"zero_stage": 0}}),
    "tensor 2 x pipeline 2, bf16": (4, {"parallel": {"tensor": 2, "pipeline": 2}, "training": {"precision": "bf16"}}),
    "data 2, ZeRO-2, bf16": (2, {"parallel": {"zero_stage": 2}, "training": {"precision": "bf16"}}),
}


def imported_in_a_run(argv: list[str]) -> list[str]:
    assert commands.run_command(argv) == 0
    return [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]


@pytest.mark.parametrize("name", CASES)
def test_the_compiler_is_not_imported(tmp_path: Path, write_config: Callable[..., Path], name: str) -> None:
    """It takes longer than the imports of torch and DeepSpeed together, and nothing is compiled."""
    world, sections = CASES[name]
    argv = ["pretrain", str(write_config(tmp_path, **sections))]
    assert run_distributed(imported_in_a_run, world, argv, init=False, timeout=100) == [[]] * world
