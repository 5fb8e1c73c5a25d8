"""A study with known numbers, written by what writes those of real ones."""

import json
from pathlib import Path
from typing import Any

from megaqk.config.loading import dump_config
from megaqk.evaluation.evaluations import result_file, write_results
from megaqk.studies.plan import Run, load_study
from megaqk.training.metrics import MetricsWriter
from megaqk.training.run_folder import RunFolder

SEEDS = (1, 2, 3)
FILE = """
name: made
description: Known numbers | <b>and</b> awkward letters.
base: {model: {num_layers: 4}, training: {steps: 30}}
seeds: [1, 2, 3]
arms:
  baseline: {qk_timing: {enabled: false}}
  timed: {qk_timing: {enabled: true, multiplier: 0.25}}
  worse: {qk_timing: {enabled: false}, optimizer: {lr: 0.01}}
comparisons: [[timed, baseline], [worse, baseline]]
interactions: [[worse, baseline, timed, baseline]]
sizes: {cpu: {}}
"""
TOKENS = (1000, 2000, 3000)
VERSIONS = {"megaqk": "0.1", "torch": "2.13.0"}


def make_study(folder: Path, *, probes: bool = True, without: tuple[str, ...] = (), file: str = FILE) -> Path:
    """Write a study and its runs but for some, named arm/seed-n; return its folder."""
    path = folder / "made.yaml"
    path.write_text(file)
    study = load_study(path, "cpu", folder / "study")
    study.keep("megaqk study run made.yaml --size cpu")
    for run in study.runs:
        if run.name not in without:
            write_run(run, probes=probes)
    return study.folder


def final_loss(arm: str, seed: int) -> float:
    baseline = 3 + seed / 10
    return {"baseline": baseline, "timed": 3.0, "worse": baseline + 0.1}[arm]


def write_run(run: Run, *, probes: bool = True, state: str = "finished", torch: str = "2.13.0") -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    writer = MetricsWriter(run.folder)
    loss = final_loss(run.arm, run.seed)
    for tokens, value in zip(TOKENS, (5.0, 4.0, loss), strict=True):
        step = tokens // 100
        writer.write({"step": step, "tokens": tokens, "loss": value + 0.01})
        writer.write({"step": step, "tokens": tokens, "valid_loss": value, "valid_perplexity": 1.0})
    writer.close()
    folder = RunFolder(run.folder)
    folder.claim()
    folder.write_result(
        {
            "state": state,
            "step": 30,
            "steps": 30,
            "loss": loss + 0.01,
            "valid_loss": loss,
            "versions": {**VERSIONS, "torch": torch},
            "topology": {"data": 1},
        }
    )
    folder.release()
    if probes:
        lines = (json.dumps(_probe(run.arm, tokens)) + "\n" for tokens in (0, *TOKENS))
        (run.folder / "probes.jsonl").write_text("".join(lines))
        (run.folder / "analysis.json").write_text(json.dumps(_analysis(run.arm)))
        accuracy = {"value": 0.75 if run.arm == "timed" else 0.5, "stderr": 0.1, "chance": 0.5}
        write_results(result_file(run.folder, 30), run.folder, 30, {"agreement": {"metrics": {"acc": accuracy}}})


def _probe(arm: str, tokens: int) -> dict[str, Any]:
    upper = 0.7 if arm == "timed" else 0.5
    return {
        "step": tokens // 100,
        "tokens": tokens,
        "attention_entropy": [[0.9, 0.7], [0.9, 0.7], [upper, None], [upper, upper]],
        "attention_write_energy": [0.1, 0.3, 0.4, 0.6],
        "ffn_write_energy": [1.0, 1.0, 2.0, 2.0 if arm == "timed" else 4.0],
    }


def _analysis(arm: str) -> dict[str, Any]:
    upper = (0.9, 0.8, 0.6) if arm == "timed" else (0.9, 0.7, 0.5)
    slow = 0.05 if arm == "timed" else 0.1
    factor = [0.1, 0.1, slow, slow]
    pair = {
        "step_size_factor": {"query": factor, "key": factor},
        "residual_energy": [1.0, 2.0, 3.0, 5.0],
        "total": [0.5] * 4,
        "share": {"weights": [0.5] * 4, "features": [0.75] * 4, "interaction": [-0.25] * 4},
    }
    return {
        "steps": [10, 20, 30],
        "tokens": [750, 2000, 3000],
        "num_layers": 4,
        "upper": [2, 3],
        "reference_step": 30,
        "probe_tokens": 64,
        "attention_entropy": [[[0.95] * 2] * 2 + [[value - 0.1, value + 0.1]] * 2 for value in upper],
        "stability_cka": [[0.7, 0.9, 0.1, 0.1], [1.0] * 4, [1.0] * 4],
        "reliance_layer": [[0.0] * 4, [0.0] * 4, [0.1, 0.2, 0.3, 0.4]],
        "reliance_head": [[[0.0, 0.0]] * 2 + [[0.3, 0.1]] * 2],
        "timing_index": {"tokens": -300.0, "upper_sharp_tokens": 1200.0, "lower_stable_tokens": 1500.0},
        "pathwise": [{"from": 10, "to": 20} | pair, {"from": 20, "to": 30} | pair],
    }
