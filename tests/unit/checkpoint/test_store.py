"""The store of checkpoints as a folder: complete or absent, whatever moment a process dies at."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from megaqk.checkpoint.damage import DamagedError
from megaqk.checkpoint.reader import Checkpoint, open_step
from megaqk.checkpoint.store import INDEX, MANIFEST
from megaqk.errors import UserError
from tests.unit.checkpoint.checkpoints import manifest_of, open_store, save, write


class DiedError(BaseException):
    """Stands for a kill: no clean-up of ours may see it."""


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("call", ["rename", "rmtree", "fsync", "write_text", "write_bytes"])
def test_dying_in_a_commit_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Die at the first, second, ... use of each call that changes the disk, until the commit gets through."""
    for moment in range(1, 20):
        store = open_store(tmp_path / str(moment), newest=1)
        save(store, 5)
        store.begin(10)
        written = write(store, 10)
        uses = 0

        def die(*args: Any, original: Any, moment: int = moment, **kwargs: Any) -> Any:
            nonlocal uses
            uses += 1
            if uses == moment:
                raise DiedError
            return original(*args, **kwargs)

        owner: Any = {"rmtree": shutil, "fsync": os}.get(call, Path)
        original = getattr(owner, call)
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, lambda *a, _o=original, **k: die(*a, original=_o, **k))
            try:
                store.commit(10, manifest_of(10), *written)
            except DiedError:
                pass
            else:
                assert moment > 1, "the call was never used"
                break
        assert store.steps() in ([5], [5, 10], [10])
        Checkpoint(store.path(store.steps()[-1])).verify()
        save(store, 15)
        assert sorted(path.name for path in store.folder.iterdir()) == ["step-15"]
    else:
        pytest.fail("the commit never got through")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "rank-00000.safetensors").write_bytes(b"w"), "has 1 bytes, but .* were written"),
        (lambda folder: (folder / "rank-00000.safetensors").unlink(), "it is not there"),
        (lambda folder: (folder / INDEX).unlink(), "index.json: damaged, it is not there"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json: damaged, it is not there"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": '), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "damaged"),
        (lambda folder: edit(folder / MANIFEST, '"step": 10', '"stfp": 10'), "its contents are not what was written"),
        (lambda folder: edit(folder / MANIFEST, '"step": 10', '"step": 3'), "its contents are not what was written"),
        (lambda folder: edit(folder / MANIFEST, '"sha256"', '"sha265"'), "damaged"),
        (lambda folder: folder.rename(folder.with_name("step-10.away")), "it is not there"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, said: str) -> None:
    store = open_store(tmp_path)
    save(store, 10)
    damage(store.path(10))
    with pytest.raises(DamagedError, match=said) as caught:
        Checkpoint(store.path(10))
    assert "\n" not in str(caught.value)
    assert str(store.path(10)) in str(caught.value)


def test_another_steps_folder_is_noticed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    save(store, 5)
    store.path(5).rename(store.path(7))
    with pytest.raises(DamagedError, match=r"step-7: damaged, it is of step 5"):
        open_step(store, 7)


def test_one_of_another_format_is_refused_and_not_called_damaged(tmp_path: Path) -> None:
    old = tmp_path / "step-10"
    old.mkdir()
    content = {"progress": {"step": 10}, "identity": {}, "files": {}}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (old / MANIFEST).write_text(json.dumps({**content, "sha256": digest}))
    with pytest.raises(
        UserError, match="written in format 1, which this version does not read: it must be 2"
    ) as caught:
        Checkpoint(old)
    assert not isinstance(caught.value, DamagedError)


def test_a_damaged_number_of_the_format_is_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    save(store, 10)
    edit(store.path(10) / MANIFEST, '"format": 2', '"format": 3')
    with pytest.raises(DamagedError):
        Checkpoint(store.path(10))


def test_what_is_no_checkpoint_is_not_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path, newest=3)
    save(store, 5)
    for name in ("step-x", "step-007", "step-7.aside", "step-7.2.aside"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-11.partial").touch()
    (tmp_path / "step-12.partial").mkdir()
    assert store.steps() == [5]
    assert [path.name for path in store.aside()] == ["step-7.2.aside", "step-7.aside"]
    save(store, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-007",
        "step-12",
        "step-5",
        "step-7.2.aside",
        "step-7.aside",
        "step-x",
    ]


def test_one_that_is_in_the_way_is_set_aside(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for _ in range(3):
        save(store, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-10.2.aside", "step-10.aside"]
    Checkpoint(tmp_path / "step-10.aside").verify()


def test_nothing_there(tmp_path: Path) -> None:
    store = open_store(tmp_path / "none")
    assert store.steps() == []
    assert store.aside() == []


def test_one_that_cannot_be_used_takes_no_good_ones_place(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step in (5, 10):
        save(store, step)
    (store.path(10) / MANIFEST).write_text("")
    for step in (15, 20):
        save(store, step)
    assert store.steps() == [10, 15, 20]
    (store.path(20) / MANIFEST).write_text("")
    assert store.kept() == {15: "newest"}


def test_an_old_one_that_cannot_be_removed_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "run", newest=1)
    save(store, 5)
    elsewhere = store.path(5).rename(tmp_path / "elsewhere")
    store.path(5).symlink_to(elsewhere)
    save(store, 10)  # the link goes, what it names stays
    assert store.steps() == [10]
    assert elsewhere.exists()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        for step in (15, 20):
            save(store, step)
    assert "step-10.old.partial: could not be removed (Operation not permitted)" in caplog.text
    assert store.steps() == [20]
    save(store, 25)
    assert [path.name for path in store.folder.iterdir()] == ["step-25"]
