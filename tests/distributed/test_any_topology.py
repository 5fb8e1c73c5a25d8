"""A checkpoint of any topology goes on on any other: nothing of it is lost, and the losses are those of no change.

The runs of one world size follow each other in the same processes, since starting these takes longer than a run.
"""

import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import driver
from tests.distributed.layouts import AT, MODELS, TOKENS, Layout, Passage, travel
from tests.harness import run_distributed

LOSS_TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3}
"""Relative, each step; that of bf16 is what `test_bf16` allows it against fp32."""

NOT_PERSISTENT = (("stage3_param_persistence_threshold", 0),)
OFFLOADED = (("offload_optimizer", "cpu"),)

COVERING = [
    Layout(zero=0),
    Layout(zero=2, precision="bf16", deepspeed=OFFLOADED),
    Layout(tensor=2, zero=0),
    Layout(tensor=2, zero=3, deepspeed=NOT_PERSISTENT),
    Layout(pipeline=2, layers=(3, 1)),
    Layout(pipeline=2, precision="bf16"),
    Layout(data=2, zero=0),
    Layout(data=2, zero=1, precision="bf16", deepspeed=OFFLOADED),
    Layout(data=2, zero=2),
    Layout(data=2, zero=3, precision="bf16", deepspeed=NOT_PERSISTENT),
    Layout(data=4, zero=3),
    Layout(tensor=2, pipeline=2, zero=0),
    Layout(tensor=2, data=2, zero=2, deepspeed=OFFLOADED),
    Layout(pipeline=2, data=2, precision="bf16"),
    Layout(tensor=4, zero=1),
    Layout(pipeline=4, zero=1, layers=(0, 1, 3, 0)),
]

Pair = tuple[Layout, Layout, int]
"""From, to, and the place of the model in `MODELS`."""

# Each to itself, and to another one, which is another for each.
PAIRS: list[Pair] = [
    (layout, COVERING[(place + step) % len(COVERING)], place % len(MODELS))
    for place, layout in enumerate(COVERING)
    for step in (0, 7)
]


def every_layout() -> Iterator[Layout]:
    """All that fits four ranks."""
    for tensor, pipeline, data in product((1, 2, 4), repeat=3):
        if tensor * pipeline * data <= 4:
            for zero in range(4 if pipeline == 1 else 2):
                for precision in ("fp32", "bf16") if zero else ("fp32",):
                    yield Layout(tensor, pipeline, data, zero, precision)
    yield from (layout for layout in COVERING if layout.layers or layout.deepspeed)


EVERY = list(dict.fromkeys(every_layout()))
FULL: list[Pair] = [
    (source, target, (i + j) % len(MODELS))
    for (i, source), (j, target) in product(enumerate(EVERY), repeat=2)
    if source.precision == target.precision or (i + j) % 8 == 0
]


class Travels:
    """What became of the selected pairs; the checkpoints of one source and model are written once.

    Args:
        folder: Where checkpoints go.
        pairs: All that will be asked for.
    """

    CHUNK = 16

    def __init__(self, folder: Path, pairs: list[Pair]) -> None:
        self._folder, self._sources, self._targets = folder, {}, {}
        self._chunk_of_source = self._chunks([(source, model) for source, _, model in pairs], 0)
        self._chunk_of_pair = self._chunks(pairs, 1)

    def _chunks(self, keys: list[Any], layout: int) -> dict[Any, tuple[Any, ...]]:
        """For each those of its world size that share its processes."""
        found = {}
        for world in (1, 2, 4):
            members = [key for key in dict.fromkeys(keys) if key[layout].world == world]
            for first in range(0, len(members), self.CHUNK):
                chunk = tuple(members[first : first + self.CHUNK])
                found.update(dict.fromkeys(chunk, chunk))
        return found

    def source(self, layout: Layout, model: int) -> tuple[Path, list[float]]:
        """The checkpoints of the run that changes nothing, and its losses."""
        if (layout, model) not in self._sources:
            chunk = self._chunk_of_source[layout, model]
            passages = [Passage(one, MODELS[n], self._folder / f"{one}-{n}") for one, n in chunk]
            self._sources.update(zip(chunk, self._run(passages), strict=True))
        return self._outcome(self._sources[layout, model])

    def target(self, pair: Pair) -> tuple[Path, list[float]]:
        """The same of the run that changes."""
        if pair not in self._targets:
            chunk = self._chunk_of_pair[pair]
            passages = [
                Passage(to, MODELS[n], self._folder / f"{source}-{to}-{n}", self.source(source, n)[0])
                for source, to, n in chunk
            ]
            self._targets.update(zip(chunk, self._run(passages), strict=True))
        return self._outcome(self._targets[pair])

    def _run(self, passages: list[Passage]) -> list[Any]:
        """A failure is kept too: what hangs once is not waited for again."""
        try:
            world = passages[0].layout.world
            losses = run_distributed(travel, world, passages, init=False, timeout=60 + 20 * len(passages))[0]
        except Exception as error:
            return [error] * len(passages)
        return [(passage.target, trace) for passage, trace in zip(passages, losses, strict=True)]

    def _outcome(self, outcome: Any) -> tuple[Path, list[float]]:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture(scope="module")
def travels(request: pytest.FixtureRequest) -> Iterator[Travels]:
    pairs = [
        item.callspec.params["pair"]
        for item in request.session.items
        if item.path == request.path and "pair" in getattr(item, "fixturenames", ())
    ]
    with tempfile.TemporaryDirectory() as folder:
        yield Travels(Path(folder), pairs)


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Bit for bit, but for rows that pad the vocabulary, which are zero."""
    assert ours.manifest["state"] == theirs.manifest["state"]
    assert ours.manifest["progress"] == theirs.manifest["progress"]
    assert ours.manifest["identity"] == theirs.manifest["identity"]
    assert list(ours.index.tensors) == list(theirs.index.tensors)
    for name in theirs.index.tensors:
        one, other = ours.tensor(name), theirs.tensor(name)
        if one.shape != other.shape:
            assert not one[TOKENS:].any(), name
            assert not other[TOKENS:].any(), name
            one, other = one[:TOKENS], other[:TOKENS]
        assert torch.equal(one, other), name


def check(pair: Pair, travels: Travels, record_property: Any) -> None:
    source, target, model = pair
    (before, undisturbed), (after, losses) = travels.source(source, model), travels.target(pair)
    written = Checkpoint(before / "checkpoints" / f"step-{AT}")
    groups = written.manifest["state"]["optimizer"]
    assert any("upper_qk" in name for name in groups)
    assert all(values["step"] == AT for values in groups.values())
    assert_same(Checkpoint(after / "checkpoints" / f"step-{AT}"), written)
    error = max(abs(a - b) / b for a, b in zip(losses, undisturbed, strict=True))
    record_property("loss", error)
    assert error <= LOSS_TOLERANCE["bf16" if "bf16" in (source.precision, target.precision) else "fp32"]
    if source == target:
        assert losses == undisturbed
        assert_same(*(Checkpoint(folder / "checkpoints" / f"step-{driver.STEPS}") for folder in (after, before)))
    shutil.rmtree(after)


def name_of(pair: Pair) -> str:
    return f"{pair[0]}-to-{pair[1]}"


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_covering_subset(pair: Pair, travels: Travels, record_property: Any) -> None:
    check(pair, travels, record_property)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pair", [pair for pair in FULL if pair not in PAIRS], ids=name_of)
def test_full_product(pair: Pair, travels: Travels, record_property: Any) -> None:
    check(pair, travels, record_property)
