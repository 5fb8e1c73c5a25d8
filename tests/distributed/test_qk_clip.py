"""QK-clip on every topology against a plain loop over whole weights in this process."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megaqk.checkpoint.reader import Checkpoint
from megaqk.config.loading import load_config
from megaqk.corpus.prepare import prepare
from megaqk.data.splits import open_splits
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from tests.distributed import commands
from tests.harness import run_distributed

STEPS, BATCH, LENGTH, RATE, THRESHOLD = 3, 8, 24, 1e-2, 4.0
# Gradients of key biases are zero but for rounding, which a smaller one would blow up to steps.
EPS = 1e-5
LIMIT = 120

MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"preset": "gpt"},
    "gpt-grouped": {"preset": "gpt", "num_kv_heads": 2, "num_heads": 8, "head_dim": 4},
    "llama": {"preset": "llama", "tied_embedding": True},
}


@dataclass(frozen=True)
class Case:
    model: str
    world: int = 1
    parallel: tuple[tuple[str, int], ...] = ()
    training: tuple[tuple[str, str], ...] = ()
    separate: bool = False

    def sections(self, data: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": {**MODELS[self.model], "init_std": 0.2},
            "parallel": dict(self.parallel),
            "optimizer": {"lr": RATE, "weight_decay": 0.1, "grad_clip": 0.0, "eps": EPS, "implementation": "torch"},
            "schedule": {"kind": "constant", "warmup_steps": 0},
            "qk_timing": {"enabled": False},
            "qk_clip": {"threshold": THRESHOLD},
            "data": {**data, "separate_documents": self.separate},
            "training": {
                "steps": STEPS,
                "global_batch_size": BATCH,
                "micro_batch_size": 2,
                "sequence_length": LENGTH,
                "seed": 5,
                **dict(self.training),
            },
            "checkpoint": {"every": 1},
            "evaluation": {"every": 2, "batches": 1},
        }


ZERO0, ZERO1, ZERO2, ZERO3 = ((("zero_stage", stage),) for stage in range(4))
BF16 = (("precision", "bf16"),)
CASES = {
    "one": Case("gpt", separate=True),
    "tp2-pp2": Case("gpt-grouped", 4, (("tensor", 2), ("pipeline", 2), *ZERO0)),
    "dp2-zero1-full": Case("gpt", 2, ZERO1, (("recompute", "full"),)),
    "dp2-zero2-selective": Case("llama", 2, ZERO2, (("recompute", "selective"),)),
    "dp2-zero3": Case("gpt-grouped", 2, (*ZERO3,)),
    "bf16-pp2-dp2-zero1": Case("gpt", 4, (("pipeline", 2), *ZERO1), BF16),
    "bf16-tp2-dp2-zero2": Case("gpt-grouped", 4, (("tensor", 2), *ZERO2), BF16),
    "bf16-dp2-zero3": Case("llama", 2, ZERO3, BF16),
}


@dataclass(frozen=True)
class Expected:
    """What the plain loop says, by step where it is a list."""

    losses: list[float]
    maxima: list[Tensor]  # layers x heads
    factors: list[dict[str, float]]  # of the heads of parameters that were scaled
    weights: dict[str, Tensor]


@cache
def plain_run(path: Path) -> Expected:
    config = load_config(path)
    prepared = prepare(config.data)
    splits = open_splits(prepared, config.data, sequence_length=LENGTH, seed=5, global_batch_size=BATCH)
    context = model_context(config, tokens=prepared.vocab_size, rows=-(-prepared.vocab_size // 128) * 128)
    decoder = Decoder(context)
    weights = decoder.global_parameters()
    initialize(weights, context, seed=5)
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.1 if weight.dim() > 1 else 0.0} for weight in weights.values()],
        lr=RATE,
        betas=(0.9, 0.95),
        eps=EPS,
    )
    heads, width = config.model.num_heads, config.model.head_size
    shared = heads // config.model.kv_heads
    losses: list[float] = []
    maxima: list[Tensor] = []
    scaled: list[dict[str, float]] = []
    for step in range(STEPS):
        samples = torch.from_numpy(splits.train.read(np.arange(step * BATCH, (step + 1) * BATCH)))
        inputs, labels = samples[:, :-1], samples[:, 1:]
        positions = torch.arange(LENGTH).repeat(BATCH, 1)
        scored = torch.ones_like(labels, dtype=torch.bool)
        if config.data.separate_documents:
            scored = inputs != prepared.eod_id
            for row in range(BATCH):
                for column in range(1, LENGTH):
                    positions[row, column] = positions[row, column - 1] + 1 if scored[row, column - 1] else 0
        largest: dict[int, Tensor] = {}
        with context.taps.watching("scores", lambda layer, x, into=largest: into.update({layer: x.amax((0, 2, 3))})):  # type: ignore[misc]
            logits = decoder.logits((inputs, positions))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = loss[scored.flatten()].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        maxima.append(torch.stack([largest[layer] for layer in sorted(largest)]))
        scaled.append({})
        for layer, row in enumerate(maxima[-1].tolist()):
            gamma = [THRESHOLD / value if value > THRESHOLD else 1.0 for value in row]
            for kind, factors in (
                ("query", [gamma[h] / min(gamma[h // shared * shared :][:shared]) ** 0.5 for h in range(heads)]),
                ("key", [min(gamma[k * shared :][:shared]) ** 0.5 for k in range(heads // shared)]),
            ):
                for name in (f"layers.{layer}.attention.qkv.{kind}_{part}" for part in ("weight", "bias")):
                    for head, factor in enumerate(factors if name in weights else ()):
                        weights[name].data[head * width : (head + 1) * width] *= factor
                        scaled[-1] |= {f"{name} {head}": factor} if factor != 1 else {}
    return Expected(losses, maxima, scaled, {name: weight.detach().clone() for name, weight in weights.items()})


def run_and_look(argv: list[str], folder: str) -> int:
    """The command, with a look at weights before and after a step's clipping."""
    from megaqk.training import hooks
    from megaqk.training.optimizer_state import named_fragments
    from megaqk.training.trainer import Hook, Step, Trainer
    from megaqk.training.zero3 import gathered_parameter

    before: list[Tensor] = []
    scaled: list[dict[str, float]] = []

    class Before(Hook):
        def step(self, run: Trainer, step: Step) -> None:
            before[:] = [fragment.of(fragment.master).clone() for _, fragment in named_fragments(run.engine)]

    class After(Hook):
        def step(self, run: Trainer, step: Step) -> None:
            engine = run.engine
            scaled.append({})
            for (name, fragment), old in zip(named_fragments(engine), before, strict=True):
                new = fragment.of(fragment.master)
                ratios: dict[str, set[float]] = {}
                for place in (new != old).nonzero().flatten().tolist():
                    head = head_of(engine, name, fragment.first + place)
                    ratios.setdefault(f"{name} {head}", set()).add(float(new[place]) / float(old[place]))
                assert all(max(values) - min(values) < 1e-5 for values in ratios.values())
                scaled[-1] |= {head: max(values) for head, values in ratios.items()}
            # What the model computes with is what the optimizer has.
            for name, parameter in engine.parameters.items():
                with gathered_parameter(parameter):
                    whole = parameter.detach().flatten().clone()
                for other, fragment in named_fragments(engine):
                    if other == name:
                        rounded = fragment.of(fragment.master).to(whole.dtype)
                        assert torch.equal(whole[fragment.first : fragment.end], rounded), name

        def end(self, run: Trainer) -> None:
            (Path(folder) / f"scaled-{run.world.rank}.json").write_text(json.dumps(scaled))

    def head_of(engine: Any, name: str, place: int) -> int:
        """The head, in the whole model, of an element of this rank's shard."""
        from megaqk.parallel.sharding import sharding_of

        shape = sharding_of(engine.parameters[name]).shape
        columns = shape[1] if len(shape) == 2 else 1
        first_row = engine.world.tp.rank * engine.world.tp.share(shape[0])
        return int((first_row + place // columns) // engine.config.model.head_size)

    defaults = hooks.default_hooks
    hooks.default_hooks = lambda: [Before(), *defaults(), After()]
    return commands.run_command(argv)


@pytest.mark.parametrize("name", CASES)
def test_heads_shrink_as_in_a_plain_loop(
    tmp_path: Path, write_config: Callable[..., Path], data_section: dict[str, Any], name: str
) -> None:
    case = CASES[name]
    path = write_config(tmp_path, **case.sections(data_section))
    argv = ["pretrain", str(path)]
    assert run_distributed(run_and_look, case.world, argv, str(tmp_path), init=False, timeout=LIMIT) == [0] * case.world
    expected = plain_run(path)
    # Some are clipped and some are not, now and then.
    counts = [int((maxima > THRESHOLD).sum()) for maxima in expected.maxima]
    assert all(0 < count < expected.maxima[0].numel() for count in counts), counts
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "loss" in record]
    exact = "bf16" not in name
    close = 2e-5 if exact else 5e-2
    assert [record["loss"] for record in records] == pytest.approx(expected.losses, rel=close)
    assert [record["qk_clip/max_logit"] for record in records] == pytest.approx(
        [float(maxima.max()) for maxima in expected.maxima], rel=close
    )
    ranks = [json.loads(file.read_text()) for file in tmp_path.glob("scaled-*.json")]
    for step, factors in enumerate(expected.factors):
        found = {head: factor for rank in ranks for head, factor in rank[step].items()}
        if exact:
            # All other heads, and all else, have kept their bits.
            assert found.keys() == factors.keys()
        for head in found | factors:
            assert found.get(head, 1.0) == pytest.approx(factors.get(head, 1.0), rel=close), head
    if exact:
        assert [record["qk_clip/clipped_heads"] for record in records] == counts
        checkpoint = Checkpoint(tmp_path / "run" / "checkpoints" / f"step-{STEPS}")
        for weight, value in expected.weights.items():
            torch.testing.assert_close(checkpoint.tensor(f"weight/{weight}"), value, rtol=2e-4, atol=2e-5, msg=weight)


def test_a_resumed_run_ends_as_one_that_was_not(
    tmp_path: Path, write_config: Callable[..., Path], data_section: dict[str, Any]
) -> None:
    path = write_config(tmp_path, **Case("gpt-grouped").sections(data_section))
    argv, last = ["pretrain", str(path)], tmp_path / "run" / "checkpoints" / f"step-{STEPS}"
    assert run_distributed(commands.run_command, 1, argv, init=False, timeout=LIMIT) == [0]
    whole = Checkpoint(last)
    tensors = {name: whole.tensor(name).clone() for name in whole.index.tensors}
    shutil.rmtree(last)
    assert run_distributed(commands.run_command, 1, argv, init=False, timeout=LIMIT) == [0]
    assert all(torch.equal(Checkpoint(last).tensor(name), tensor) for name, tensor in tensors.items())


def test_a_step_that_is_skipped_clips_nothing(
    tmp_path: Path, write_config: Callable[..., Path], data_section: dict[str, Any]
) -> None:
    path = write_config(tmp_path, **Case("gpt").sections(data_section))
    assert run_distributed(run_with_lost_gradients, 1, ["pretrain", str(path)], init=False, timeout=LIMIT) == [0]


def run_with_lost_gradients(argv: list[str]) -> int:
    """The command; after a step whose gradient is lost, every weight has its bits."""
    from megaqk.training.trainer import Hook, Step, Trainer

    kept: dict[str, Tensor] = {}

    class Spoil(Hook):
        def start(self, run: Trainer) -> None:
            [*_, parameter] = run.engine.parameters.values()
            parameter.register_hook(lambda gradient: gradient * torch.nan if run.progress.step == 2 else gradient)

        def step(self, run: Trainer, step: Step) -> None:
            if step.progress.step == 3:
                assert run.engine.skipped
                assert run.signals["qk_clip/clipped_heads"] == 0
                assert run.signals["qk_clip/max_logit"] > THRESHOLD
                assert all(torch.equal(kept[name], value) for name, value in run.engine.parameters.items())
            kept.update({name: value.detach().clone() for name, value in run.engine.parameters.items()})

    return commands.run_with(argv, Spoil())
