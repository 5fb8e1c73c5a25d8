from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaqk.config.qk_timing import TimingRule
from megaqk.optim.multipliers import Moment
from megaqk.optim.timing import Clock, Timing, depth_factors

CLOCK = Clock(tokens_per_step=512, total_steps=1000)


def multiplier(rule: TimingRule, step: int, clock: Clock, held: float | None = None) -> float:
    return Timing(rule=rule, clock=clock, held=rule.multiplier if held is None else held).at(Moment(step))


def at(steps: list[int], clock: Clock = CLOCK, **keys: Any) -> list[float]:
    rule = TimingRule(**keys)
    return [multiplier(rule, step, clock) for step in steps]


def test_a_linear_release_in_steps() -> None:
    values = at([0, 9, 10, 15, 19, 20, 999], unit="steps", hold=10, release_end=20, multiplier=0.2)
    assert values == pytest.approx([0.2, 0.2, 0.2, 0.6, 0.92, 1.0, 1.0], rel=1e-15)
    assert values[-2] == 1.0


def test_a_cosine_release_in_tokens() -> None:
    keys = {"unit": "tokens", "hold": 5120, "release_end": 10240, "multiplier": 0.2, "release": "cosine"}
    values = at([9, 10, 15, 20], **keys)
    assert values == pytest.approx([0.2, 0.2, 0.6, 1.0], rel=1e-15)
    # A quarter of the way: (1 - cos(pi / 4)) / 2 = 0.14644660940672624
    assert at([12], **{**keys, "hold": 5120, "release_end": 9216})[0] == pytest.approx(0.2 + 0.8 * 0.14644660940672624)


def test_a_step_release_ignores_its_end() -> None:
    assert at([99, 100, 101], hold=0.1, release="step", release_end=0.9, multiplier=0.0) == [0.0, 1.0, 1.0]


def test_tokens_between_steps_count_from_the_next_step() -> None:
    assert at([9, 10, 11], unit="tokens", hold=5121, release="step", multiplier=0.5) == [0.5, 0.5, 1.0]


def test_no_hold_and_no_release_is_no_multiplier() -> None:
    assert at([0, 1], hold=0.0, multiplier=0.0) == [1.0, 1.0]


def test_a_hold_over_the_whole_run_never_releases() -> None:
    assert at([0, 999], hold=1.0, release="step", multiplier=0.3) == [0.3, 0.3]


@settings(deadline=None)
@given(total=st.integers(1, 100_000), data=st.data())
def test_fractions_fall_exactly_on_their_step(total: int, data: st.DataObject) -> None:
    hold = data.draw(st.integers(0, total // 2))
    # The default end of the release, twice the hold, must be as exact as the hold.
    rule = TimingRule(hold=float(f"{hold / total!r}"), multiplier=0.25)
    clock = Clock(tokens_per_step=1, total_steps=total)
    if hold:
        assert multiplier(rule, hold - 1, clock) == 0.25
        assert multiplier(rule, hold, clock) == 0.25
        assert multiplier(rule, 2 * hold - 1, clock) < 1.0 or hold == 1
    assert multiplier(rule, 2 * hold, clock) == 1.0


RULES = st.builds(
    lambda a, hold, length, release: TimingRule(
        unit="steps", multiplier=a, hold=hold, release_end=hold + length, release=release
    ),
    st.floats(0, 1),
    st.integers(0, 50),
    st.integers(0, 50),
    st.sampled_from(["step", "linear", "cosine"]),
)


@settings(deadline=None)
@given(RULES)
def test_any_rule_holds_then_rises_to_exactly_one(rule: TimingRule) -> None:
    values = [multiplier(rule, step, CLOCK) for step in range(120)]
    assert all(value == rule.multiplier for value in values[: int(rule.hold)])
    assert values == sorted(values)
    assert all(rule.multiplier <= value <= 1 for value in values)
    assert all(value == 1.0 for value in values[int(rule.end) :])


def test_a_layer_may_hold_a_value_of_its_own() -> None:
    rule = TimingRule(unit="steps", hold=10, release_end=20, multiplier=0.2)
    assert multiplier(rule, 0, CLOCK, held=0.6) == 0.6
    assert multiplier(rule, 15, CLOCK, held=0.6) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("uniform", {6: 0.1, 7: 0.1, 9: 0.1}),
        ("linear", {6: 0.7, 7: 0.4, 9: 0.1}),
        ("geometric", {6: 0.1 ** (1 / 3), 7: 0.1 ** (2 / 3), 9: 0.1}),
    ],
)
def test_depth_profiles(profile: Any, expected: dict[int, float]) -> None:
    factors = depth_factors(TimingRule(depth_profile=profile, multiplier=0.1), [9, 6, 7])
    assert list(factors) == [6, 7, 9]
    assert factors == pytest.approx(expected)
    assert factors[9] == 0.1


@pytest.mark.parametrize(
    ("unit", "value", "step"), [("steps", 2.5, 3), ("tokens", 1024, 2), ("tokens", 1025, 3), ("fraction", 0.3, 300)]
)
def test_the_first_step_at_a_position(unit: str, value: float, step: int) -> None:
    assert CLOCK.first_step(unit, value) == step
