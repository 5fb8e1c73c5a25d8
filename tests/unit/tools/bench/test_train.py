"""What the benchmark makes of steps that others disturbed, and that it notices them."""

import subprocess
import sys
import time
from typing import Any

import pytest
import train
import train_case
from train import Case


def result(*steps: tuple[float, float]) -> dict[str, Any]:
    return {"steps": [{"seconds": s, "others": o} for s, o in steps], "parameters": 1_000_000}


def test_only_undisturbed_steps_of_the_same_round_are_compared() -> None:
    rounds = [
        {"theirs": result((2.0, 0.0), (9.0, 0.5)), "ours": result((1.0, 0.1), (8.0, 0.13))},
        {"theirs": result((3.0, 0.0)), "ours": result((1.0, 0.0))},
        {"theirs": result((7.0, 0.9)), "ours": result((1.0, 0.0))},
    ]
    assert train.ratios(rounds, "ours", "theirs") == [2.0, 3.0]
    cases = {"theirs": Case("transformers", "gpt"), "ours": Case("megaqk", "gpt", against=("theirs",))}
    table = train.report(cases, rounds)
    assert "2.50x (2.00-3.00, 2) of theirs" in table
    assert "2/4" in table.splitlines()[1]


def test_a_case_that_was_never_alone_has_no_figure() -> None:
    rounds = [{"ours": result((1.0, 0.5))}]
    assert "others were at work in every step" in train.report({"ours": Case("megaqk", "gpt")}, rounds)


def test_settings_reach_every_case_of_megaqk_and_variants_stand_beside() -> None:
    cases = train.all_cases(["training.precision=bf16"], ["model.dropout=0.1 model.bias=false"])
    common = ("--set", "training.precision=bf16")
    assert all(case.options[:2] == common for case in cases.values() if case.implementation == "megaqk")
    variant = cases["megaqk llama, 2 micro-batches, model.dropout=0.1 model.bias=false"]
    assert variant.options == (*common, "--set", "model.dropout=0.1", "--set", "model.bias=false")
    assert "megaqk llama, 2 micro-batches" in variant.against
    assert all(other in cases for case in cases.values() for other in case.against)


def test_the_work_of_another_process_is_noticed() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            steps = train_case.timed_steps(lambda _: time.sleep(0.5), 2)
        finally:
            other.kill()
    assert all(step["others"] > train.OTHERS_LIMIT for step in steps)
    assert all(step["seconds"] == pytest.approx(0.5, abs=0.4) for step in steps)
