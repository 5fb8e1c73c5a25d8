"""What a run that goes on may change, and what it may not; the topology it may."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megaqk.errors import UserError
from megaqk.training.compatibility import changed_keys, check_compatible

CONFIG: dict[str, Any] = {
    "model": {"num_layers": 4},
    "parallel": {"zero_stage": 1, "tensor": 1, "layers_per_stage": None},
    "training": {"precision": "fp32", "sequence_length": 8, "seed": 1},
}
MINE: dict[str, Any] = {"tokens": 90, "optimizer": "torch AdamW (fused)", "groups": {"decay": "1f", "some_qk": "2e"}}
MANIFEST = json.loads(json.dumps({"identity": MINE, "config": CONFIG}))


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("tokens", 91, "with tokens 90, this run has 91.* the same tokenizer"),
        ("optimizer", "DeepSpeed CPUAdam", "torch AdamW.* this run has DeepSpeed CPUAdam; optimizer.implementation: "),
        ("groups", {"decay": "1f", "some_qk": "3d"}, "qk_timing: the parameter groups some_qk hold other parameters"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, part: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_compatible(MANIFEST, CONFIG, {**MINE, part: value}, tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("model", "num_layers", 5), ("training", "sequence_length", 16), ("training", "seed", 2)],
)
def test_another_key_is_refused(tmp_path: Path, section: str, key: str, value: Any) -> None:
    changed = {**CONFIG, section: {**CONFIG[section], key: value}}
    with pytest.raises(UserError, match=rf"{section}\.{key} = {re.escape(str(value))}: must be"):
        check_compatible(MANIFEST, changed, MINE, tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("parallel", "zero_stage", 3), ("parallel", "tensor", 2), ("training", "precision", "bf16")],
)
def test_another_topology_or_precision_is_not(tmp_path: Path, section: str, key: str, value: Any) -> None:
    changed = {**CONFIG, section: {**CONFIG[section], key: value}}
    check_compatible(MANIFEST, changed, MINE, tmp_path)
    assert len(changed_keys(CONFIG, changed)) == 1


def test_what_changed_is_said() -> None:
    was = {"optimizer": {"lr": 0.1, "eps": 1e-8}, "logging": {"every": 1}}
    now = {"optimizer": {"lr": 0.2, "eps": 1e-8}, "logging": {"every": 5}}
    assert changed_keys(was, now) == ["optimizer.lr = 0.2 (was 0.1)"]
