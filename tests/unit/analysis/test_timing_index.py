"""When layers count as sharp and stable, on curves whose crossings are seen at a glance."""

from typing import Any

import pytest

from megaqk.analysis.timing_index import Thresholds, timing_index, upper_layers
from megaqk.config.root import Config
from megaqk.errors import UserError

STEPS, TOKENS = [0, 10, 20, 40], [0, 100, 200, 400]


def test_crossings_are_interpolated() -> None:
    index = timing_index(STEPS, TOKENS, [0.1, 0.2, 0.4, 0.5], [0.2, 0.92, 0.8, 1.0], Thresholds())
    # Half of the way from 0.1 to 0.5 is passed between steps 10 and 20; 0.9 for good halfway between 20 and 40.
    assert index == pytest.approx(
        {
            "sharpness_threshold": 0.3,
            "stability_threshold": 0.9,
            "upper_sharp_step": 15,
            "upper_sharp_tokens": 150,
            "lower_stable_step": 30,
            "lower_stable_tokens": 300,
            "steps": -15,
            "tokens": -150,
        }
    )


@pytest.mark.parametrize(
    ("sharpness", "stability", "thresholds", "expected"),
    [
        ([0.5, 0.5, 0.2, 0.1], [1.0, 1.0, 1.0, 1.0], Thresholds(), (None, 0, None)),
        # A rise of almost nothing is no sharpening, one of 0.01 is.
        ([8.9e-5, 2e-4, 5e-4, 1e-3], [1.0, 1.0, 1.0, 1.0], Thresholds(), (None, 0, None)),
        ([0.0, 0.0, 0.01, 0.01], [1.0, 1.0, 1.0, 1.0], Thresholds(), (15, 0, 15)),
        ([0.1, 0.2, 0.4, 0.5], [1.0, 0.5, 0.8, 0.85], Thresholds(sharpness=0.6), (None, None, None)),
        ([0.6, 0.2, 0.4, 0.5], [0.0, 0.0, 0.0, 1.0], Thresholds(sharpness=0.6, stability=0.5), (0, 30, -30)),
        ([0.0, 0.3, 0.1, 0.4], [0.0, 0.5, 0.5, 0.4], Thresholds(sharpness=0.3, stability=0.4), (10, 8, 2)),
    ],
)
def test_what_never_happens_is_null(
    sharpness: list[float], stability: list[float], thresholds: Thresholds, expected: tuple[float | None, ...]
) -> None:
    index = timing_index(STEPS, TOKENS, sharpness, stability, thresholds)
    found = (index["upper_sharp_step"], index["lower_stable_step"], index["steps"])
    assert found == pytest.approx(expected)


def test_one_checkpoint() -> None:
    index = timing_index([7], [70], [0.5], [1.0], Thresholds(sharpness=0.4))
    assert (index["upper_sharp_step"], index["lower_stable_tokens"], index["steps"]) == (7, 70, 0)
    assert timing_index([7], [70], [0.5], [1.0], Thresholds())["upper_sharp_step"] is None


@pytest.mark.parametrize(
    ("timing", "upper"),
    [
        ({}, (3, 4, 5)),
        ({"enabled": True, "layers": {"fraction": [0.6, 1.0]}}, (4, 5)),
        # Of no upper layers: the lower ones, all, with a gap; not of query and key.
        ({"enabled": True, "layers": {"range": [0, 3]}}, (3, 4, 5)),
        ({"enabled": True, "layers": {"range": [0, 6]}}, (3, 4, 5)),
        ({"enabled": True, "layers": {"list": [2, 5]}}, (3, 4, 5)),
        ({"enabled": True, "layers": {"range": [4, 6]}, "projections": ["value", "output"]}, (3, 4, 5)),
        ({"enabled": False, "layers": {"range": [4, 6]}}, (3, 4, 5)),
    ],
)
def test_upper_layers(timing: dict[str, Any], upper: tuple[int, ...]) -> None:
    config = Config.model_validate({"model": {"num_layers": 6}, "qk_timing": timing})
    assert upper_layers(config) == upper
    assert upper_layers(config, 1) == (1, 2, 3, 4, 5)
    with pytest.raises(UserError, match="--upper = 6: must be in"):
        upper_layers(config, 6)


def test_one_layer_is_neither_upper_nor_lower() -> None:
    with pytest.raises(UserError, match=r"model.num_layers = 1: must be at least 2"):
        upper_layers(Config.model_validate({"model": {"num_layers": 1}}))
