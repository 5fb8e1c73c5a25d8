"""Reading pieces back: any rectangle, checked, by this library's reader and by safetensors' own."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from megaqk.checkpoint.boxes import Box
from megaqk.checkpoint.damage import DamagedError
from megaqk.checkpoint.index import Index
from megaqk.checkpoint.reader import Checkpoint, Wanted, open_checkpoint
from megaqk.errors import UserError
from tests.unit.checkpoint.checkpoints import MATRIX, PARTS, TENSORS, VECTOR, open_store, save

STEP = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = open_store(tmp_path)
    save(store, STEP)
    return store.path(STEP)


def test_whole_tensors(path: Path) -> None:
    checkpoint = Checkpoint(path)
    assert checkpoint.parameters == ["matrix", "vector"]
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor + STEP)
    assert torch.equal(checkpoint.weight("matrix"), MATRIX + STEP)
    with pytest.raises(UserError, match="holds no weight/other: must be one of weight/matrix"):
        checkpoint.weight("other")


def test_every_rectangle(path: Path) -> None:
    checkpoint, outer = Checkpoint(path), Box((0, 0), (7, 5))
    for row in range(7):
        for column in range(5):
            box = Box((row, column), (7 - row, 5 - column))
            # A view with gaps, as a column of a shard is.
            target = torch.full((7, 10), -1.0)[:, ::2][row:, column:]
            checkpoint.read([Wanted("weight/matrix", box, target)])
            assert torch.equal(target, box.within(outer, MATRIX) + STEP)


def test_safetensors_reads_the_files(path: Path) -> None:
    for rank, parts in enumerate(PARTS):
        with safe_open(path / f"rank-0000{rank}.safetensors", "pt") as file:
            names = [
                f"{name}[{','.join(f'{a}:{a + n}' for a, n in zip(b.first, b.shape, strict=True))}]"
                for name, b in parts
            ]
            assert list(file.keys()) == sorted(names)
            for (tensor, box), name in zip(parts, names, strict=True):
                outer = Box.whole(tuple(TENSORS[tensor].shape))
                assert torch.equal(file.get_tensor(name), box.within(outer, TENSORS[tensor]) + STEP)


@pytest.mark.parametrize("at", [9, -1], ids=["header", "data"])
def test_a_flipped_bit_is_found(path: Path, at: int) -> None:
    victim = path / "rank-00001.safetensors"
    content = bytearray(victim.read_bytes())
    content[at] ^= 1
    victim.write_bytes(content)
    checkpoint = Checkpoint(path)
    with pytest.raises(DamagedError, match=r"rank-00001.safetensors: damaged, .* not what was written"):
        checkpoint.verify()
    assert torch.equal(checkpoint.weight("matrix"), MATRIX + STEP)  # which lies elsewhere
    if at == -1:
        with pytest.raises(DamagedError, match="what begins at byte"):
            checkpoint.weight("vector")


def test_a_missing_or_cut_file_is_found(path: Path) -> None:
    checkpoint = Checkpoint(path)
    victim = path / "rank-00001.safetensors"
    victim.write_bytes(victim.read_bytes()[:-4])
    with pytest.raises(DamagedError, match="damaged, it ends at byte"):
        checkpoint.weight("vector")
    with pytest.raises(DamagedError, match=r"has .* bytes, but .* were written"):
        Checkpoint(path)
    victim.unlink()
    with pytest.raises(DamagedError, match=r"rank-00001.safetensors: damaged, it is not there"):
        checkpoint.weight("vector")


def test_an_index_with_a_gap_is_found(path: Path) -> None:
    checkpoint = Checkpoint(path)
    files = dict(checkpoint.index.files)
    files["rank-00001.safetensors"] = files["rank-00001.safetensors"][:-1]
    gap = Index(checkpoint.index.tensors, files)
    assert gap.incomplete() == "weight/vector"
    assert checkpoint.index.incomplete() is None
    checkpoint.__dict__["index"] = gap
    with pytest.raises(DamagedError, match="3 elements of weight/vector are nowhere"):
        checkpoint.weight("vector")


def test_an_index_survives_json(path: Path) -> None:
    index = Checkpoint(path).index
    assert Index.from_json(index.to_json()) == index
    (path / "index.json").write_text("{}" + " " * (len(index.to_json()) - 2))
    with pytest.raises(DamagedError, match=r"index.json: damaged, its contents"):
        _ = Checkpoint(path).index


def test_what_pickles_is_never_opened(path: Path) -> None:
    """A file of another kind under a rank's name is bytes with another checksum."""
    torch.save({"vector": VECTOR}, path / "rank-00001.safetensors")
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["rank-00001.safetensors"] != (path / "rank-00001.safetensors").stat().st_size
    with pytest.raises(DamagedError):
        Checkpoint(path)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_now_is_not_damaged(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A start that fails for it goes on from the same checkpoint later; it must not go back behind it."""

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    checkpoint = Checkpoint(path)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=rf"safetensors: cannot be read \({os.strerror(number)}") as caught:
        checkpoint.weight("matrix")
    assert not isinstance(caught.value, DamagedError)


def test_files_are_not_kept_open(path: Path) -> None:
    checkpoint = Checkpoint(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        checkpoint.verify()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_under_another_name(path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "best")
    assert torch.equal(Checkpoint(str(copy)).weight("vector"), VECTOR + STEP)


def test_a_checkpoint_is_found_by_its_folder_or_its_run(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run" / "checkpoints")
    for step in (2, 10):
        save(store, step)
    assert open_checkpoint(tmp_path / "run").manifest["progress"]["step"] == 10
    assert open_checkpoint(store.path(2)).manifest["progress"]["step"] == 2
    with pytest.raises(UserError, match=r"checkpoints: must be a checkpoint"):
        open_checkpoint(store.folder)
