"""The store of checkpoints as a folder: complete or absent, whatever moment a process dies at."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.parallel.world import World
from megaqk.runtime.files import sha256_of
from megaqk.runtime.launch import Launch
from megaqk.training.checkpoint_store import MANIFEST, CheckpointStore
from megaqk.training.checkpoints import changed_keys, check_compatible, find_latest


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
    commit(store, step)


def commit(store: CheckpointStore, step: int) -> None:
    paths = [store.partial(step) / name for name in ("parts/optimizer.pt", "weights.pt")]
    files = {
        str(path.relative_to(store.partial(step))): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
    store.commit(step, {"progress": {"step": step}, "config": {}, "identity": {}, "data": {}, "state": {}}, files)


def latest(store: CheckpointStore) -> tuple[int, list[str]]:
    """What a run of one process finds."""
    return find_latest(store, World(build_config({}), Launch()))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_another_steps_folder_is_noticed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 5)
    store.path(5).rename(store.path(7))
    with pytest.raises(
        UserError, match=r"none of its checkpoints is whole; .*step-7/manifest.json: damaged, it is of step 5"
    ):
        latest(store)


def test_keeps_the_newest(tmp_path: Path) -> None:
    for keep in (1, 2, 3):
        store = CheckpointStore(tmp_path / str(keep), keep=keep)
        for step in (5, 10, 15, 20):
            save(store, step)
            assert store.steps() == [s for s in (5, 10, 15, 20) if s <= step][-keep:]
            assert latest(store) == (step, [])
        sizes = {name: file["bytes"] for name, file in store.manifest(20)["files"].items()}
        assert sizes == {"parts/optimizer.pt": 10, "weights.pt": 20}


def test_nothing_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none", keep=2)
    assert latest(store) == (0, [])
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
                commit(store, 10)
            except DiedError:
                pass
            else:
                assert moment > 1, "the call was never used"
                break
        step, problems = latest(store)
        assert step in (5, 10)
        assert not problems
        save(store, 15)
        assert latest(store) == (15, [])
        assert sorted(path.name for path in store.folder.iterdir()) == ["step-15"]
    else:
        pytest.fail("the commit never got through")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "weights.pt").write_bytes(b"w"), "weights.pt: 1 bytes, but 10 were written"),
        (lambda folder: (folder / "weights.pt").unlink(), "damaged checkpoint"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": '), "damaged checkpoint"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "must hold progress"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "must hold progress"),
        (lambda folder: edit(folder / MANIFEST, '"step": 10', '"stfp": 10'), "manifest.json: damaged, its contents"),
        (lambda folder: edit(folder / MANIFEST, '"step": 10', '"step": 3'), "manifest.json: damaged, its contents"),
        (lambda folder: edit(folder / MANIFEST, '"sha256"', '"sha265"'), "manifest.json: damaged, its contents"),
        (lambda folder: (folder / "weights.pt").write_bytes(b"x" * 10), "its contents are not what was written"),
    ],
)
def test_goes_back_behind_a_damaged_one(tmp_path: Path, damage: Any, said: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 5)
    save(store, 10)
    damage(store.path(10))
    step, [problem] = latest(store)
    assert step == 5
    assert said in problem
    assert "\n" not in problem
    save(store, 10)  # the run gets there again
    assert latest(store) == (10, [])


def test_without_a_manifest_it_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 5)
    (tmp_path / "step-10").mkdir()
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-11.partial").touch()
    step, [problem] = latest(store)
    assert step == 5
    assert "step-10: damaged checkpoint" in problem
    save(store, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-12", "step-5", "step-x"]


def test_a_damaged_one_takes_no_good_ones_place(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 5)
    save(store, 10)
    (store.path(10) / "weights.pt").unlink()
    assert latest(store)[0] == 5
    save(store, 8)  # saved more often than before
    assert store.steps() == [5, 8, 10]
    save(store, 11)
    assert store.steps() == [8, 11]


def test_another_run_is_refused_by_key(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model": {"num_layers": 4},
        "parallel": {"zero_stage": 1, "layers_per_stage": None},
        "training": {"precision": "fp32", "sequence_length": 8, "seed": 1},
    }
    mine: dict[str, Any] = {
        "topology": {"pipeline": 1, "data": 2, "tensor": 1, "layers_per_stage": [4]},
        "vocabulary": {"tokens": 90, "rows": 128},
        "optimizer": "torch AdamW (fused)",
        "groups": {"decay": "1f", "some_qk": "2e"},
    }
    manifest = json.loads(json.dumps({"identity": mine, "config": config}))
    check_compatible(manifest, config, mine, tmp_path)
    for part, value, said in (
        ("topology", {**mine["topology"], "data": 1}, "data 2.* this run has .*data 1"),
        ("vocabulary", {"tokens": 91, "rows": 128}, "tokens 90.* this run has tokens 91.* the same tokenizer"),
        ("optimizer", "DeepSpeed CPUAdam", "torch AdamW.* this run has DeepSpeed CPUAdam; optimizer.implementation: "),
        ("groups", {"decay": "1f", "some_qk": "3d"}, "qk_timing: the parameter groups some_qk hold other parameters"),
        ("topology", {**mine["topology"], "layers_per_stage": [3, 1]}, r"layers_per_stage \[4\].* \[3, 1\]"),
    ):
        with pytest.raises(UserError, match=said):
            check_compatible(manifest, config, {**mine, part: value}, tmp_path)
    for section, key, value in (
        ("model", "num_layers", 5),
        ("parallel", "zero_stage", 2),
        ("training", "precision", "bf16"),
        ("training", "sequence_length", 16),
        ("training", "seed", 2),
    ):
        changed = {**config, section: {**config[section], key: value}}
        with pytest.raises(UserError, match=rf"{section}\.{key} = {re.escape(str(value))}: must be"):
            check_compatible(manifest, changed, mine, tmp_path)


def test_what_changed_is_said() -> None:
    was = {"optimizer": {"lr": 0.1, "eps": 1e-8}, "logging": {"every": 1}}
    now = {"optimizer": {"lr": 0.2, "eps": 1e-8}, "logging": {"every": 5}}
    assert changed_keys(was, now) == ["optimizer.lr = 0.2 (was 0.1)"]
