"""Ranks that share the reading of a checkpoint agree on what it is worth."""

from pathlib import Path

import pytest

from megaqk.config.loading import build_config
from megaqk.parallel.world import World
from megaqk.runtime.files import sha256_of
from megaqk.runtime.launch import read_launch
from megaqk.training.checkpoint_store import CheckpointStore
from tests.harness import run_distributed

FILES = ("a.pt", "b.pt", "c.pt")


def latest(folder: str) -> int:
    from megaqk.training.checkpoints import find_latest

    world = World(build_config({"training": {"global_batch_size": 4, "micro_batch_size": 2}}), read_launch()).connect()
    return find_latest(CheckpointStore(Path(folder), keep=2), world)[0]


@pytest.mark.parametrize("victim", [None, *FILES])
def test_every_file_is_read_by_some_rank(tmp_path: Path, victim: str | None) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    sections = {"config": {}, "identity": {}, "data": {}, "state": {}}
    for step in (1, 2):
        partial = store.partial(step)
        partial.mkdir()
        for name in FILES:
            (partial / name).write_bytes(bytes(100))
        files = {name: {"bytes": 100, "sha256": sha256_of(partial / name)} for name in FILES}
        store.commit(step, {"progress": {"step": step}, **sections}, files)
    if victim:
        (store.path(2) / victim).write_bytes(b"\1" * 100)
    assert run_distributed(latest, 2, str(tmp_path), init=False) == [1 if victim else 2] * 2
