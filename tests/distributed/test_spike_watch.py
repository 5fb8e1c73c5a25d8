"""What the watch for spikes costs a step: nobody waits for the device, and all ranks see the same bits."""

from typing import Any

from tests.distributed import driver
from tests.harness import run_distributed


def watched_steps(cases: list[dict[str, Any]]) -> list[tuple[list[Any], list[Any]]]:
    """Of each case, on a device that is not the CPU: what is seen of four steps, and what waited for it."""
    from tests import pretend

    device = pretend.install()
    seen = []
    for case in cases:
        engine, waits = driver.start_engine(case), []
        from megaqk.training.spikes import SpikeWatch

        watch = SpikeWatch(("loss", "gradient norm"), 2, 0.0, device, {})
        for step in range(4):
            engine.train_step(driver.micro_batches(engine, driver.batches()[step]), driver.at_step(step))
            del pretend.waits[:]
            with pretend.no_host_collectives():
                watch.enter(engine.loss_and_norm())
            waits += pretend.waits
        seen.append(([engine.loss_and_norm().tolist(), watch.spikes(), watch.state()], waits))
    return seen


def test_the_watch_waits_for_nothing() -> None:
    kinds: list[dict[str, Any]] = [
        {"zero_stage": 0, "data": 2},
        {"zero_stage": 2, "data": 2},
        {"pipeline": 2, "training": {"precision": "bf16"}},
    ]
    ours, theirs = run_distributed(watched_steps, 2, [driver.settings({}, **kind) for kind in kinds], timeout=100)
    assert ours == theirs
    for (loss, norm), spikes, _ in (values for values, _ in ours):
        assert 4 < loss < 5
        assert norm > 0.1
        assert all(spike.value > spike.mean > 0 for spike in spikes)
    # The verdicts on the third and fourth: into a GPU's pinned memory, of which this device has none, nobody waits.
    assert [[what for what, _ in waits] for _, waits in ours] == [["copy to the host"] * 2] * len(kinds)
