import json
import math

import pytest
import torch

from megaqk.training.spikes import SpikeWatch

WINDOW, LIMIT = 20, 6.0


def watch(state: dict[str, object] | None = None, names: tuple[str, ...] = ("loss",)) -> SpikeWatch:
    return SpikeWatch(names, WINDOW, LIMIT, torch.device("cpu"), state or {})


def spikes_of(one: SpikeWatch, values: list[float]) -> list[int]:
    """The places of the spikes among the values."""
    return [place for place, value in enumerate(values) if one.enter(torch.tensor([value])) and one.spikes()]


def noise(count: int, level: float = 2.0, seed: int = 0) -> list[float]:
    return (level + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def test_the_first_window_is_a_plain_mean_and_is_not_judged() -> None:
    one, values = watch(), [*noise(WINDOW - 1), 1e6]
    assert spikes_of(one, values) == []
    exact = torch.tensor(values, dtype=torch.float32).double()
    state = one.state()
    assert state["mean"] == pytest.approx([exact.mean().item()])
    assert state["variance"] == pytest.approx([exact.var(correction=0).item()])


def test_what_stands_out_above_is_a_spike() -> None:
    values = noise(200)
    values[70], values[120], values[150] = 3.0, 4.0, -5.0
    assert spikes_of(watch(), values) == [70, 120]


def test_one_spike_hides_no_second() -> None:
    one = watch()
    assert spikes_of(one, [*noise(100), 1e9, *noise(5), 1e9]) == [100, 106]


def test_a_level_that_lasts_is_learned() -> None:
    found = spikes_of(watch(), [*noise(100), *noise(200, level=20.0)])
    assert found[0] == 100
    assert found[-1] < 120


def test_each_value_is_held_against_its_own() -> None:
    one = watch(names=("loss", "gradient norm"))
    for value in noise(WINDOW):
        one.enter(torch.tensor([value, 100 * value]))
    assert one.enter(torch.tensor([2.0, 900.0]))
    [spike] = one.spikes()
    assert spike.name == "gradient norm"
    assert spike.value == 900
    assert spike.mean == pytest.approx(200, rel=0.1)
    assert spike.deviation == pytest.approx(10, rel=0.5)


def test_a_state_goes_through_json() -> None:
    whole, first = watch(), watch()
    values = noise(60)
    spikes_of(whole, values)
    spikes_of(first, values[:33])
    second = watch(json.loads(json.dumps(first.state())))
    spikes_of(second, values[33:])
    assert second.state() == whole.state()
    assert math.isfinite(whole.state()["mean"][0])
