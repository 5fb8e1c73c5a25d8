"""A whole run against a loop written out here: what it learns from, what it is judged by, what it reports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megaqk.config.loading import load_config
from megaqk.corpus.prepare import prepare
from megaqk.data.splits import open_splits
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from tests.distributed import commands
from tests.harness import run_distributed

STEPS, BATCH, LENGTH, RATE = 6, 8, 48, 3e-3


def run(tmp_path: Path, write_config: Callable[..., Path], world: int = 1, **sections: Any) -> Path:
    training = {"steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 2, "sequence_length": LENGTH, "seed": 5}
    sections["training"] = training | sections.get("training", {})
    config = write_config(tmp_path, **sections)
    argv = ["pretrain", str(config)]
    assert run_distributed(commands.run_command, world, argv, init=False, timeout=120) == [0] * world
    return config


def records(config: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("separate", [False, True], ids=["whole-samples", "documents-apart"])
def test_samples_losses_and_validation_are_those_of_a_plain_loop(
    tmp_path: Path, write_config: Callable[..., Path], data_section: dict[str, Any], separate: bool
) -> None:
    path = run(
        tmp_path,
        write_config,
        model={"dropout": 0.1},
        optimizer={"lr": RATE, "weight_decay": 0.0, "grad_clip": 0.0},
        schedule={"kind": "constant", "warmup_steps": 0},
        qk_timing={"enabled": False},
        data={**data_section, "separate_documents": separate},
        evaluation={"every": 3, "batches": 2},
    )
    config = load_config(path)
    prepared = prepare(config.data)
    splits = open_splits(prepared, config.data, sequence_length=LENGTH, seed=5, global_batch_size=BATCH)
    assert splits.valid is not None
    assert splits.valid.num_samples >= 2 * BATCH
    context = model_context(config, tokens=prepared.vocab_size, rows=-(-prepared.vocab_size // 128) * 128)
    decoder = Decoder(context)
    initialize(decoder.global_parameters(), context, seed=5)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def total_loss(samples: Any) -> tuple[torch.Tensor, int]:
        """Summed loss of samples (n, S + 1) and its number of labels; a document's first token is no label."""
        inputs, labels = torch.from_numpy(samples[:, :-1].copy()), torch.from_numpy(samples[:, 1:].copy())
        ends = inputs == prepared.eod_id
        place, positions = torch.arange(LENGTH), torch.zeros_like(inputs)
        for row, end in enumerate(ends):
            start = 0
            for index in place.tolist():
                positions[row, index] = index - start
                start = index + 1 if end[index] else start
        logits = decoder.logits((inputs, positions if separate else place.repeat(len(inputs), 1)))
        scored = ~ends if separate else torch.ones_like(ends)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * scored.flatten()).sum(), int(scored.sum())

    def samples(stream: Any, first: int, count: int) -> list[Any]:
        """In micro-batches of 2; each sample's number in the run names its dropout masks."""
        return [stream.read(np.arange(start, start + 2)) for start in range(first, first + count, 2)]

    expected = []
    for step in range(STEPS):
        context.rng.begin_step(step * BATCH, micro_batch_size=2)
        decoder.train()
        parts = [total_loss(part) for part in samples(splits.train, step * BATCH, BATCH)]
        loss = sum(part for part, _ in parts) / sum(count for _, count in parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append({"step": step + 1, "loss": loss.item()})
        if step + 1 in (3, STEPS):
            decoder.eval()
            with torch.no_grad():
                parts = [total_loss(part) for part in samples(splits.valid, 0, 2 * BATCH)]
            valid = float(sum(part for part, _ in parts) / sum(count for _, count in parts))
            expected.append({"step": step + 1, "valid_loss": valid})
    ours = [{key: record[key] for key in ("step", "loss", "valid_loss") if key in record} for record in records(path)]
    assert ours == [pytest.approx(record, rel=1e-5) for record in expected]


def run_on_a_slow_clock(argv: list[str]) -> int:
    """The command with a clock on which a step takes 2 s, and an evaluation and a save 1000 s each."""
    from types import SimpleNamespace

    from megaqk.training import peak, speed
    from megaqk.training.engine import TrainingEngine
    from megaqk.training.hooks import logging
    from megaqk.training.run_checkpoints import RunCheckpoints

    now = 0.0

    def takes(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*args, **kwargs)

        return timed

    # What is done once before the first step takes a while too.
    peak.job_peak = takes(1000.0, peak.job_peak)
    logging.job_peak = peak.job_peak
    speed.time = SimpleNamespace(perf_counter=lambda: now)  # type: ignore[assignment]
    TrainingEngine.train_step = takes(2.0, TrainingEngine.train_step)  # type: ignore[method-assign]
    TrainingEngine.evaluate = takes(1000.0, TrainingEngine.evaluate)  # type: ignore[method-assign]
    RunCheckpoints.save = takes(1000.0, RunCheckpoints.save)  # type: ignore[method-assign]
    return commands.run_command(argv)


def test_speed_counts_training_alone_and_utilisation_is_of_all_ranks(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    from megaqk.model.decoder import parameter_inventory
    from megaqk.model.flops import flops_per_token

    path = write_config(
        tmp_path,
        training={"steps": 6},
        logging={"every": 2},
        evaluation={"every": 2, "batches": 1},
        checkpoint={"every": 4},
    )
    assert run_distributed(run_on_a_slow_clock, 2, ["pretrain", str(path)], init=False, timeout=120) == [0, 0]
    config = load_config(path)
    training = [record for record in records(path) if "loss" in record]
    assert [record["step"] for record in training] == [2, 4, 6]
    flops = flops_per_token(config.model, parameter_inventory(config, rows=384), 16)
    for record in training:
        assert record["tokens_per_second"] == pytest.approx(8 * 16 / 2.0)
        assert record["model_flops_per_second"] == pytest.approx(64 * flops)
        assert record["mfu"] == pytest.approx(64 * flops / 1e9)  # `run_command` gives the job a peak of 1e9
