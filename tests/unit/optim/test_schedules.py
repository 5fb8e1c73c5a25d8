import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaqk.config.optimization import ScheduleConfig
from megaqk.optim.schedules import lr_factor


def factors(total: int, **keys: Any) -> list[float]:
    schedule = ScheduleConfig(**keys)
    return [lr_factor(schedule, step, total) for step in range(total + 2)]


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    for kind in ("constant", "linear", "cosine", "wsd"):
        assert factors(10, kind=kind, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_stays() -> None:
    assert factors(4, kind="constant") == [1.0] * 6


def test_linear_by_hand() -> None:
    # x = 0, 1/4, 1/2, 3/4, 1; 0.2 + 0.8 (1 - x)
    expected = [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert factors(6, kind="linear", warmup_steps=2, min_lr_ratio=0.2) == pytest.approx(expected, rel=1e-15)


def test_cosine_by_hand() -> None:
    half = math.sqrt(0.5) / 2
    expected = [1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0]
    assert factors(4, kind="cosine", min_lr_ratio=0.0) == pytest.approx(expected, abs=1e-15)
    assert factors(4, kind="cosine", min_lr_ratio=0.1)[2] == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("shape", "tail"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
        ("sqrt", [1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0.0]),
    ],
)
def test_warmup_stable_decay_by_hand(shape: str, tail: list[float]) -> None:
    values = factors(10, kind="wsd", warmup_steps=2, decay_steps=4, decay_shape=shape, min_lr_ratio=0.0)
    assert values[:7] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert values[6:11] == pytest.approx(tail, abs=1e-15)


@pytest.mark.parametrize(("total", "warmup", "length"), [(100, 0, 10), (5, 0, 1), (100, 95, 5), (10, 10, 0)])
def test_the_default_decay_is_a_tenth_of_the_run(total: int, warmup: int, length: int) -> None:
    values = factors(total, kind="wsd", warmup_steps=warmup, min_lr_ratio=0.0)
    # The first step of the decay is still at the peak.
    assert sum(value < 1 for value in values[warmup:total]) == max(length - 1, 0)
    assert values[total] == 0.0


SCHEDULES = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup_steps=st.integers(0, 20),
    min_lr_ratio=st.floats(0, 1),
    decay_shape=st.sampled_from(["linear", "cosine", "sqrt"]),
)


@settings(deadline=None)
@given(schedule=SCHEDULES, extra=st.integers(0, 200))
def test_any_schedule_rises_then_never_rises_again_and_ends_exactly(schedule: ScheduleConfig, extra: int) -> None:
    total = max(1, schedule.warmup_steps + extra)
    values = [lr_factor(schedule, step, total) for step in range(total + 1)]
    warmup = schedule.warmup_steps
    assert all(0 <= value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert all(later <= earlier + 1e-15 for earlier, later in zip(values[warmup:], values[warmup + 1 :], strict=False))
    if extra:
        assert values[warmup] == 1.0
    if schedule.kind != "constant":
        assert values[total] == schedule.min_lr_ratio
