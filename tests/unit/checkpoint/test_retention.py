"""Which checkpoints stay, by hand."""

from pathlib import Path

from megaqk.checkpoint.retention import Retention
from tests.unit.checkpoint.checkpoints import open_store, save

LOSSES: dict[int, float | None] = {10: 5.0, 20: 3.0, 30: None, 40: 3.0, 50: 4.0, 60: None}


def kept(**retention: int) -> dict[int, str]:
    reasons = Retention(**retention).reasons(LOSSES)
    assert list(reasons) == list(LOSSES)
    return {step: why for step, why in reasons.items() if why}


def test_reasons() -> None:
    assert kept(newest=2) == {50: "newest", 60: "newest"}
    assert kept(newest=1, every=20) == {20: "every 20", 40: "every 20", 60: "newest, every 20"}
    # Of two that are alike the newer one.
    assert kept(newest=1, best=1) == {40: "best", 60: "newest"}
    assert kept(newest=1, best=3) == {20: "best", 40: "best", 50: "best", 60: "newest"}
    assert Retention(newest=9, every=7, best=9).reasons({}) == {}


def test_a_store_keeps_them(tmp_path: Path) -> None:
    store = open_store(tmp_path, newest=1, every=20, best=1)
    for step, loss in ((10, 5.0), (20, 4.0), (30, 3.0), (40, None), (50, 3.5)):
        save(store, step, loss)
    assert store.steps() == [20, 30, 40, 50]
