"""Speed on one GPU, as tables for the README, in under nine minutes.

First what the device can do at all, then steps of the two 270M models with the time of each by kind of work and a model
of 7B's width at two depths, from which its whole depth follows; then one change at a time. Every case is a process of
its own with a limit, and is printed when it ends; what the time does not reach is left out at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROGRAM = Path(__file__).with_name("gpu_case.py")
CONFIGS = Path(__file__).parents[2] / "configs"
CASE_LIMIT = 120

BATCH = ("training.global_batch_size=32", "training.micro_batch_size=8", "training.sequence_length=2048")
WIDE = (
    "model.hidden_size=4096",
    "model.num_heads=32",
    "model.tied_embedding=false",
    "training.global_batch_size=4",
    "training.micro_batch_size=1",
    "training.sequence_length=4096",
)
DEPTHS, WHOLE_DEPTH = (4, 8), 32


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        model: A file of `configs/`, without its suffix.
        overrides: `key=value` of it.
        against: The row that this one changes.
        tokens: Size of the vocabulary.
        profile: Whether to say what its time goes to.
    """

    model: str
    overrides: tuple[str, ...] = BATCH
    against: str = ""
    tokens: int = 50257
    profile: bool = False


CHANGES: dict[str, tuple[str, ...]] = {
    "not compiled": ("training.compile=false",),
    "attention: flash": ("training.attention=flash",),
    "attention: efficient": ("training.attention=efficient",),
    "micro-batches of 16": ("training.micro_batch_size=16",),
    "micro-batches of 4": ("training.micro_batch_size=4",),
    "gradients joined at once": ("deepspeed.immediate_grad_update=true",),
    "ZeRO-2": ("parallel.zero_stage=2",),
    "ZeRO-2 without overlap": ("parallel.zero_stage=2", "deepspeed.overlap_comm=false"),
    "ZeRO-3": ("parallel.zero_stage=3",),
    "recompute: selective": ("training.recompute=selective",),
    "recompute: full": ("training.recompute=full",),
    "feed-forward width 2728 for 2688": ("model.ffn_multiple_of=8",),
    "grouped heads, 4 of 16": ("model.num_kv_heads=4",),
    "documents apart": ("data.separate_documents=true",),
}
"""What is changed of llama-270m, one at a time."""

CASES: dict[str, Case] = {
    "llama-270m": Case("llama-270m", profile=True),
    "gpt-270m": Case("gpt-270m", profile=True),
    **{f"7B width, {depth} layers": Case("llama-270m", (*WIDE, f"model.num_layers={depth}")) for depth in DEPTHS},
    **{name: Case("llama-270m", (*BATCH, *changed), "llama-270m") for name, changed in CHANGES.items()},
    "vocabulary of 50304 for 50257": Case("llama-270m", against="llama-270m", tokens=50304),
    "vocabulary of 128256": Case("llama-270m", against="llama-270m", tokens=128256),
}

TINY = (
    "model.hidden_size=32",
    "model.num_heads=4",
    "training.sequence_length=16",
    "training.global_batch_size=16",
    "training.micro_batch_size=4",
)
"""What a dry run changes last, so that every case takes moments on a CPU."""


def command(case: Case, *, dry: bool) -> list[str]:
    """Arguments of `gpu_case.py`."""
    overrides = [*case.overrides, *TINY] if dry else list(case.overrides)
    if dry and not any(o.startswith("model.num_layers") for o in overrides):
        overrides.append("model.num_layers=2")
    words = ["--config", str(CONFIGS / f"{case.model}.yaml"), "--tokens", str(64 if dry else case.tokens)]
    words += ["--steps", "1" if dry else "10", *(["--profile"] if case.profile else [])]
    return words + [word for override in overrides for word in ("--set", override)]


def measure(words: list[str], seconds: float) -> dict[str, Any] | str:
    """Run one case; its result, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
        try:
            run = subprocess.run(
                [sys.executable, str(PROGRAM), *words, "--result", str(result)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done in {seconds:.0f} s"
        if run.returncode != 0:
            return (run.stderr.strip().splitlines() or ["died"])[-1][:200]
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured


def row(name: str, result: dict[str, Any], peaks: tuple[float, float], base: dict[str, Any] | None = None) -> str:
    """A line of the table.

    Args:
        name: Of the case.
        result: Of the case.
        peaks: FLOP/s of the data sheet, and of the best product that was measured.
        base: Result of the case that it changes.
    """
    speed = result["tokens"] / result["seconds"]
    rate = speed * result["flops_per_token"]
    compared = f"{base['seconds'] / base['tokens'] * speed:.2f}x" if base else ""
    shares = " | ".join(f"{rate / peak:.1%}" for peak in peaks)
    memory = result["peak_memory_bytes"] / 1e9
    return f"| {name} | {result['parameters'] / 1e6:,.0f}M | {speed:,.0f} | {shares} | {memory:.1f} | {compared} |"


HEAD = """
| Case | parameters | tokens/s | MFU | of the measured product | memory, GB | speed of the first |
| --- | --- | --- | --- | --- | --- | --- |"""


def whole_depth(shallow: dict[str, Any], deep: dict[str, Any]) -> dict[str, Any]:
    """What the model of 32 layers would take: everything grows by the same for each layer."""

    def at(key: str) -> float:
        grown: float = (deep[key] - shallow[key]) / (DEPTHS[1] - DEPTHS[0])
        return float(deep[key]) + grown * (WHOLE_DEPTH - DEPTHS[1])

    keys = ("seconds", "flops_per_token", "parameters", "peak_memory_bytes")
    return {**{key: at(key) for key in keys}, "tokens": deep["tokens"]}


def split_row(name: str, split: dict[str, float]) -> str:
    total = sum(split.values())
    return f"| {name} | " + " | ".join(f"{1e3 * s:.1f} ms ({s / total:.0%})" for s in split.values()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=520, help="seconds for everything")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--dry-run", action="store_true", help="tiny models and one step each, for a CPU")
    arguments = parser.parse_args()
    dry, began = arguments.dry_run, time.perf_counter()

    def left() -> float:
        return min(CASE_LIMIT, arguments.budget - (time.perf_counter() - began))

    if not dry and not torch.cuda.is_available():
        sys.exit("no CUDA device here: --dry-run goes through the cases on a CPU")
    found = measure(["--dry-run"] if dry else [], left())
    if isinstance(found, str):
        sys.exit(f"the ceilings could not be measured: {found}")
    print(f"{found['device']}, torch {found['torch']}, bf16\n", flush=True)
    for name, rate in found["products"].items():
        print(f"- product of {name}: {rate / 1e12:.3g} TFLOP/s")
    for name, rate in found["copies"].items():
        print(f"- copy, {name}: {rate / 1e9:.3g} GB/s")
    from megaqk.training.peak import looked_up_peak

    product = max(found["products"].values())
    peaks = (looked_up_peak(found["device"], "bf16") or product, product)
    print(HEAD, flush=True)
    results: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        result = measure(command(case, dry=dry), left()) if left() > 0 else "no time was left"
        if isinstance(result, str):
            print(f"| {name} | {result} |", flush=True)
            continue
        results[name] = result
        print(row(name, result, peaks, results.get(case.against)), flush=True)
        shallow, deep = (f"7B width, {depth} layers" for depth in DEPTHS)
        if name == deep and shallow in results:
            print(row(f"7B, {WHOLE_DEPTH} layers, from these", whole_depth(results[shallow], result), peaks))
    splits = {name: result["split"] for name, result in results.items() if "split" in result}
    if splits:
        kinds = list(next(iter(splits.values())))
        print("\n| A step of | " + " | ".join(kinds) + " |\n|" + " --- |" * (len(kinds) + 1))
        print("\n".join(split_row(name, parts) for name, parts in splits.items()))
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
