"""Training refuses a checkpoint, or what became of it, that is not what the configuration expects, and says which."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import audits, driver
from tests.harness import run_distributed

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"zero_stage": 0}),
    "data 2, ZeRO-1": (2, {"data": 2, "zero_stage": 1}),
    "data 2, ZeRO-3": (2, {"data": 2, "zero_stage": 3}),
}
SAID = {
    "another_count": "the group upper_qk has taken 2.0 steps, the run 3",
    "no_group": "has no group upper_qk in its optimizer's state",
    "another_shape": "exp_avg/final_norm.norm.weight has the shape [7], this run needs [48]",
    "no_tensor": "exp_avg_sq/final_norm.norm.weight has the shape none, this run needs [48]",
    "one_more_tensor": "weight/other has the shape [7], this run needs none",
    "lost_moment": "has no exp_avg after the checkpoint was loaded",
    "swapped_groups": "is in the optimizer's group no_decay, must be in decay",
    "lost_count": "the optimizer's groups have the counts",
}


@pytest.mark.parametrize("name", CASES)
def test_every_difference_is_named(tmp_path: Path, name: str) -> None:
    world, parallel = CASES[name]
    case = driver.settings({"preset": "gpt"}, **parallel)
    said = run_distributed(audits.refusals, world, case, str(tmp_path), init=False, timeout=120)[0]
    assert said.keys() == SAID.keys()
    for change, words in SAID.items():
        assert words in said[change], change
