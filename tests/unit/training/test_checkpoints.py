"""The store of checkpoints as a folder: complete or absent, whatever moment a process dies at."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from megaqk.errors import UserError
from megaqk.training.checkpoints import MANIFEST, CheckpointStore, check_compatible


class DiedError(BaseException):
    """Stands for a kill: no clean-up of ours may see it."""


def write_partial(store: CheckpointStore, step: int) -> None:
    folder = store.folder / f"step-{step}.partial"
    (folder / "parts").mkdir(parents=True)
    (folder / "weights.pt").write_bytes(b"w" * step)
    (folder / "parts" / "optimizer.pt").write_bytes(b"o" * 10)


def save(store: CheckpointStore, step: int) -> None:
    store.remove_partial()
    write_partial(store, step)
    store.commit(step, {"progress": {"step": step}})


def test_keeps_the_newest(tmp_path: Path) -> None:
    for keep in (1, 2, 3):
        store = CheckpointStore(tmp_path / str(keep), keep=keep)
        for step in (5, 10, 15, 20):
            save(store, step)
            assert store.steps() == [s for s in (5, 10, 15, 20) if s <= step][-keep:]
            assert store.latest() == (step, [])
        assert store.manifest(20)["files"] == {"parts/optimizer.pt": 10, "weights.pt": 20}


def test_nothing_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none", keep=2)
    assert store.latest() == (0, [])
    assert store.steps() == []


@pytest.mark.parametrize("call", ["rename", "rmtree", "fsync", "write_text"])
def test_dying_in_a_commit_leaves_a_usable_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Die at the first, second, ... use of each call that changes the disk, until the commit gets through."""
    for moment in range(1, 20):
        store = CheckpointStore(tmp_path / str(moment), keep=1)
        save(store, 5)
        write_partial(store, 10)
        uses = 0

        def die(*args: Any, original: Any, moment: int = moment, **kwargs: Any) -> Any:
            nonlocal uses
            uses += 1
            if uses == moment:
                raise DiedError
            return original(*args, **kwargs)

        owner: Any = {"rename": Path, "write_text": Path, "rmtree": shutil, "fsync": os}[call]
        original = getattr(owner, call)
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, lambda *a, _o=original, **k: die(*a, original=_o, **k))
            try:
                store.commit(10, {"progress": {"step": 10}})
            except DiedError:
                pass
            else:
                assert moment > 1, "the call was never used"
                break
        step, problems = store.latest()
        assert step in (5, 10)
        assert not problems
        save(store, 15)
        assert store.latest() == (15, [])
        assert sorted(path.name for path in store.folder.iterdir()) == ["step-15"]
    else:
        pytest.fail("the commit never got through")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "weights.pt").write_bytes(b"w"), "weights.pt: 1 bytes, but 10 were written"),
        (lambda folder: (folder / "weights.pt").unlink(), "damaged checkpoint"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": '), "damaged checkpoint"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "damaged checkpoint"),
    ],
)
def test_goes_back_behind_a_damaged_one(tmp_path: Path, damage: Any, said: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 5)
    save(store, 10)
    damage(store.path(10))
    step, [problem] = store.latest()
    assert step == 5
    assert said in problem
    assert "\n" not in problem
    save(store, 10)  # the run gets there again
    assert store.latest() == (10, [])


def test_without_a_manifest_it_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 5)
    (tmp_path / "step-10").mkdir()
    (tmp_path / "step-x").mkdir()
    assert store.latest() == (5, [])


def test_another_run_is_refused_by_key(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model": {"num_layers": 4},
        "parallel": {"zero_stage": 1, "layers_per_stage": None},
        "training": {"precision": "fp32", "sequence_length": 8, "seed": 1},
    }
    mine = {"dims": {"pipeline": 1, "data": 2, "tensor": 1}, "vocabulary": {"tokens": 90, "rows": 128}}
    manifest = json.loads(json.dumps({**mine, "config": config}))
    check_compatible(manifest, config, mine, tmp_path)
    with pytest.raises(UserError, match=r"data 2 .* this run has .*data 1"):
        check_compatible(manifest, config, {**mine, "dims": {**mine["dims"], "data": 1}}, tmp_path)
    with pytest.raises(UserError, match=r"tokens 90 .* this run has tokens 91 .* the same tokenizer"):
        check_compatible(manifest, config, {**mine, "vocabulary": {"tokens": 91, "rows": 128}}, tmp_path)
    for section, key, value in (
        ("model", "num_layers", 5),
        ("parallel", "zero_stage", 2),
        ("training", "seed", 2),
    ):
        changed = {**config, section: {**config[section], key: value}}
        with pytest.raises(UserError, match=rf"{section}\.{key} = {value}: must be"):
            check_compatible(manifest, changed, mine, tmp_path)
