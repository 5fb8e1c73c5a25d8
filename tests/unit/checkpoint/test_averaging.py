"""`megaqk average`: the mean of the weights, as a checkpoint that any reader of one takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megaqk.checkpoint import averaging
from megaqk.checkpoint.reader import Checkpoint, open_checkpoint
from megaqk.checkpoint.store import CheckpointStore
from megaqk.cli import main
from tests.unit.checkpoint.checkpoints import MATRIX, VECTOR, manifest_of, open_store, write


def save(store: CheckpointStore, step: int, model: dict[str, Any] | None = None, tokens: int = 7) -> None:
    store.begin(step)
    known = {"config": {"model": model or {"num_layers": 2}}, "identity": {"tokens": tokens}}
    store.commit(step, {**manifest_of(step), **known}, *write(store, step))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "run" / "checkpoints", newest=9)
    for step in (10, 20, 40):
        save(store, step)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "added"),
    [
        # Every element of a checkpoint is larger by its step.
        ([], (10 + 20 + 40) / 3),
        (["--exponential", "0.5"], (0.25 * 10 + 0.5 * 20 + 40) / 1.75),
    ],
)
def test_the_mean_of_every_element(
    run_dir: Path, options: list[str], added: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "PIECE_ELEMENTS", 5)
    monkeypatch.setattr(averaging, "FILE_PIECES", 3)
    # In any order: how new one is, its step says. A run stands for its newest.
    folders = [str(run_dir), *(str(run_dir / "checkpoints" / f"step-{step}") for step in (10, 20))]
    output = run_dir.parent / "mean"
    assert main(["average", *folders, "--output", str(output), *options]) == 0
    made = Checkpoint(output)
    assert made.parameters == ["matrix", "vector"]
    for name, tensor in (("matrix", MATRIX), ("vector", VECTOR)):
        assert torch.equal(made.weight(name), (tensor.double() + added).float())
    made.verify()
    # No more than what three pieces take is ever in memory.
    sizes = [sum(piece.box.numel for piece in pieces) for pieces in made.index.files.values()]
    assert max(sizes) <= 15
    assert sum(sizes) == MATRIX.numel() + VECTOR.numel()
    assert [one["step"] for one in made.manifest["averaged"]] == [10, 20, 40]
    assert sum(one["share"] for one in made.manifest["averaged"]) == pytest.approx(1)
    assert made.manifest["progress"]["step"] == 40
    assert (made.manifest["state"], made.manifest["valid_loss"]) == ({}, None)
    assert open_checkpoint(output).path == output
    assert not list(run_dir.parent.glob("*.partial"))


def test_rows_that_pad_the_vocabulary_of_one_alone_are_zero(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest may have been written on another topology than the others."""
    from tests.unit.checkpoint import checkpoints

    store, padded = open_store(run_dir / "checkpoints", newest=9), torch.cat([MATRIX + 60, torch.zeros(2, 5)])
    parts = list(checkpoints.PARTS[1])
    parts[1] = ("weight/matrix", checkpoints.Box((4, 0), (5, 5)))
    monkeypatch.setattr(checkpoints, "TENSORS", {"weight/matrix": padded - 60, "weight/vector": VECTOR})
    monkeypatch.setattr(checkpoints, "PARTS", (checkpoints.PARTS[0], parts))
    save(store, 60)
    folders = [str(run_dir / "checkpoints" / f"step-{step}") for step in (20, 60)]
    assert main(["average", *folders, "--output", str(run_dir.parent / "mean")]) == 0
    made = Checkpoint(run_dir.parent / "mean").weight("matrix")
    assert made.shape == (9, 5)
    assert torch.equal(made[:7], MATRIX + 40)
    assert not made[7:].any()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"model": {"num_layers": 3}}, [], "step-50: model.num_layers = 3: must be 2, as in "),
        ({"tokens": 8}, [], "step-50: has a vocabulary of 8 tokens: must have 7, as "),
        ({}, ["--exponential", "1"], "--exponential = 1: must be above 0 and below 1"),
        ({}, ["--output", "FOLDER"], "run: is there already; must be a new folder"),
        ({"folder": "nowhere"}, [], "nowhere: must be a checkpoint"),
    ],
)
def test_refusals(
    run_dir: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], options: list[str], said: str
) -> None:
    store, first = open_store(run_dir / "checkpoints", newest=9), changes.pop("folder", "checkpoints/step-50")
    save(store, 50, **changes)
    save(store, 60)
    words = [word.replace("FOLDER", str(run_dir)) for word in options]
    folders = [str(run_dir / name) for name in (first, "checkpoints/step-60")]
    assert main(["average", *folders, "--output", str(run_dir.parent / "mean"), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (run_dir.parent / "mean").exists()


def test_the_list_says_what_it_is(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run_dir / "checkpoints" / "step-41"
    config = {"checkpoint": {"keep": 2, "keep_every": 0, "keep_best": 0}}
    for step in (10, 20, 40):
        store = open_store(run_dir / "checkpoints", newest=9)
        store.begin(step)
        parallel = {"parallel": {"tensor": 1, "pipeline": 1, "zero_stage": 1}, "training": {"precision": "fp32"}}
        known = {"config": {"model": {}, **config, **parallel}, "identity": {"tokens": 7}}
        store.commit(step, {**manifest_of(step), **known}, *write(store, step))
    folders = [str(run_dir / "checkpoints" / f"step-{step}") for step in (10, 20)]
    assert main(["average", *folders, "--output", str(output)]) == 0
    capsys.readouterr()
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    assert "average of 2" in capsys.readouterr().out
