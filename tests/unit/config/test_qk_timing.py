import pytest

from megaqk.config.loading import build_config
from megaqk.config.qk_timing import LayerSelector, QkTimingConfig, TimingRule
from megaqk.errors import UserError


@pytest.mark.parametrize(
    ("selector", "num_layers", "layers"),
    [
        ({"fraction": [0.5, 1]}, 12, range(6, 12)),
        ({"fraction": [0.5, 1]}, 5, range(3, 5)),  # l >= 2.5
        ({"fraction": [0, 0.3]}, 10, range(3)),
        ({"fraction": [0.3, 0.6]}, 10, range(3, 6)),
        ({"fraction": [0, 1]}, 1, range(1)),
        ({"range": [2, 5]}, 6, range(2, 5)),
        ({"list": [4, 1]}, 6, (1, 4)),
    ],
)
def test_a_selector_resolves_to_global_depths(selector: dict[str, list[float]], num_layers: int, layers: range) -> None:
    assert LayerSelector.model_validate(selector).resolve(num_layers) == tuple(layers)


@pytest.mark.parametrize("low", range(20))
def test_adjacent_fractions_share_no_layer_and_lose_none(low: int) -> None:
    border = low / 20 or 0.5
    parts = [LayerSelector(fraction=part).resolve(20) for part in ((0.0, border), (border, 1.0))]
    assert parts[0] + parts[1] == tuple(range(20))


@pytest.mark.parametrize(
    ("timing", "line"),
    [
        ({"layers": {"range": [6, 13]}}, "qk_timing.layers.range = [6, 13]: must not go beyond model.num_layers = 12"),
        (
            {"layers": {"range": [6, 6]}},
            "qk_timing.layers.range = [6, 6]: must be [first, last + 1) with 0 <= first <= last",
        ),
        ({"layers": {"list": [0, 12]}}, "qk_timing.layers.list = [0, 12]: must name layers in [0, 12)"),
        ({"layers": {"list": [-1]}}, "qk_timing.layers.list = [-1]: must name layers in [0, 12)"),
        ({"layers": {"list": []}}, "qk_timing.layers.list = []: must name layers in [0, 12)"),
        ({"layers": {"list": [1, 1]}}, "qk_timing.layers.list = [1, 1]: must name a layer once"),
        (
            {"layers": {"fraction": [0.51, 0.52]}},
            "qk_timing.layers.fraction = [0.51, 0.52]: must select a layer of model.num_layers = 12",
        ),
        (
            {"layers": {"fraction": [0.5, 0.5]}},
            "qk_timing.layers.fraction = [0.5, 0.5]: must be [low, high) with 0 <= low < high <= 1",
        ),
        (
            {"layers": {"range": [0, 2], "list": [1]}},
            "qk_timing.layers = {range: [0, 2], list: [1]}: give exactly one of fraction, range, list; "
            "got range and list",
        ),
        ({"layers": {}}, "qk_timing.layers = {}: give exactly one of fraction, range, list; got none"),
        (
            {"projections": ["query", "q"]},
            "qk_timing.projections[1] = q: must be one of query, key, value, output, ffn_in, ffn_gate, ffn_out, norm, "
            "embedding",
        ),
        ({"projections": ["key", "key"]}, "qk_timing.projections = [key, key]: must name a projection once"),
        ({"multiplier": 1.5}, "qk_timing.multiplier = 1.5: must be at most 1.0"),
        ({"hold": 2}, "qk_timing.hold = 2.0: must be at most 1 with unit = fraction"),
        ({"unit": "steps"}, "qk_timing.hold = 0.1: must be 0 or at least 1 with unit = steps"),
        (
            {"unit": "tokens", "hold": 0, "release_end": 0.3},
            "qk_timing.release_end = 0.3: must be 0 or at least 1 with unit = tokens",
        ),
        (
            {"hold": 0.6},
            "qk_timing.release_end = null: must be at most 1 with unit = fraction (null is twice the hold)",
        ),
        ({"hold": 0.6, "release_end": 0.5}, "qk_timing.release_end = 0.5: must not be below hold = 0.6"),
        (
            {"multiplier": 0, "depth_profile": "geometric"},
            "qk_timing.multiplier = 0.0: must be above 0 with depth_profile = geometric",
        ),
        (
            {"projections": ["embedding"], "depth_profile": "linear"},
            "qk_timing.depth_profile = linear: must be uniform for embedding, which has no depth",
        ),
        (
            {"multiplier": 0, "weight_decay": "unscaled"},
            "qk_timing.weight_decay = unscaled: must be scaled with a multiplier of 0",
        ),
        (
            {"multiplier": 0.5, "rules": [{}]},
            "qk_timing.multiplier = 0.5: must not stand beside rules; put it into a rule",
        ),
        (
            {"rules": [{}, {"layers": {"list": [0, 7]}, "projections": ["value", "key"]}]},
            "qk_timing.rules[1]: acts on key of layer 7, as qk_timing.rules[0] does; rules must not overlap",
        ),
        (
            {"rules": [{"projections": ["embedding"]}, {"layers": {"list": [0]}, "projections": ["embedding"]}]},
            "qk_timing.rules[1]: acts on embedding, as qk_timing.rules[0] does; rules must not overlap",
        ),
        (
            {"rules": [{}, {"layers": {"list": [12]}}]},
            "qk_timing.rules[1].layers.list = [12]: must name layers in [0, 12)",
        ),
    ],
)
def test_what_the_section_refuses(timing: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        build_config({"qk_timing": {"enabled": True, **timing}})
    assert str(caught.value) == line


def test_rules_that_do_not_meet_are_accepted() -> None:
    rules = [{}, {"projections": ["value"]}, {"layers": {"fraction": [0, 0.5]}}]
    assert len(build_config({"qk_timing": {"enabled": True, "rules": rules}}).qk_timing.active_rules) == 3


def test_switched_off_it_has_no_rules_and_asks_nothing_of_the_layers() -> None:
    timing = build_config({"qk_timing": {"layers": {"list": [99]}}}).qk_timing
    assert timing.active_rules == ()


def test_the_end_of_a_release() -> None:
    assert TimingRule(hold=0.2).end == 0.4
    assert TimingRule(hold=0.2, release_end=0.3).end == 0.3
    assert TimingRule(hold=0.2, release="step", release_end=0.1).end == 0.2
    assert QkTimingConfig(enabled=True).active_rules[0].end == 0.2
