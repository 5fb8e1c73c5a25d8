"""Topologies that checkpoints are moved between, and what a rank does to move one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaqk.model.vocab_size import padded_vocab_size
from tests.distributed import driver, questions
from tests.distributed.evaluating import mean_loss

AT = 5
"""Steps before the checkpoint: the multiplier is on its way back."""

TOKENS = 101
"""A prime: the rows of the embedding, padding included, depend on the tensor-parallel size."""

MODELS: tuple[dict[str, Any], ...] = (
    {"preset": "gpt"},
    {"preset": "llama", "num_kv_heads": 12},
    {"preset": "gpt", "tied_embedding": False},
    {"preset": "llama", "tied_embedding": True},
)


@dataclass(frozen=True)
class Layout:
    """How a run is laid out over processes.

    Attributes:
        deepspeed: Keys of `deepspeed`.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero: int = 1
    precision: str = "fp32"
    layers: tuple[int, ...] | None = None
    deepspeed: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [f"tp{self.tensor}pp{self.pipeline}dp{self.data}z{self.zero}"]
        parts += [self.precision] * (self.precision != "fp32")
        parts += ["layers" + "".join(map(str, self.layers))] if self.layers else []
        return "-".join([*parts, *(key for key, _ in self.deepspeed)])

    @property
    def world(self) -> int:
        """Processes."""
        return self.tensor * self.pipeline * self.data

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return padded_vocab_size(TOKENS, 1, self.tensor)

    def case(self, model: dict[str, Any]) -> dict[str, Any]:
        """The configuration of a model in it."""
        settings = driver.settings(
            model,
            optimizer={"implementation": "torch"},
            training={"precision": self.precision},
            tensor=self.tensor,
            pipeline=self.pipeline,
            data=self.data,
            zero_stage=self.zero,
            layers_per_stage=self.layers,
        )
        return {**settings, "deepspeed": dict(self.deepspeed)}


@dataclass(frozen=True)
class Passage:
    """A run from step `AT` on: it saves there, goes on meanwhile, and saves at its end.

    Attributes:
        layout: Its layout.
        model: The model's keys.
        target: Where it saves.
        source: Where it loads from; None: it takes the steps before itself.
    """

    layout: Layout
    model: dict[str, Any]
    target: Path
    source: Path | None = None


def travel(passages: Sequence[Passage]) -> list[list[float]]:
    """Runs of one world size after each other, on one rank: of each the loss of an evaluation at `AT`, and of steps."""
    losses = []
    for passage in passages:
        print(passage.target.name, flush=True)
        losses.append(_losses(passage))
    return losses


def _losses(passage: Passage) -> list[float]:
    engine = driver.start_engine(passage.layout.case(passage.model), TOKENS, rows=passage.layout.rows)
    from megaqk.training.run_checkpoints import RunCheckpoints

    samples = driver.batches(TOKENS)

    def train(first: int, end: int) -> list[float]:
        losses = []
        for step in range(first, end):
            engine.train_step(driver.micro_batches(engine, samples[step]), driver.at_step(step))
            losses.append(float(engine.loss()))
        return losses

    def load(folder: Path) -> None:
        loaded = RunCheckpoints(folder, engine, questions.DATA).load(before=driver.STEPS)
        assert loaded is not None
        assert loaded.progress == driver.at_step(AT)

    if passage.source is None:
        train(0, AT)
    else:
        load(passage.source)
    evaluated = mean_loss(engine, TOKENS)
    checkpoints = RunCheckpoints(passage.target, engine, questions.DATA)
    checkpoints.save(driver.at_step(AT), {}, None)
    losses = train(AT, driver.STEPS)
    checkpoints.save(driver.at_step(driver.STEPS), {}, None)
    checkpoints.wait()
    if passage.source is None:
        # Nothing of what came after is left in an engine that goes back.
        load(passage.target)
        assert train(AT, driver.STEPS) == losses
    return [evaluated, *losses]
