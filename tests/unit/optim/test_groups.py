import random
from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.errors import UserError
from megaqk.model.decoder import parameter_inventory
from megaqk.model.parameters import ParameterInfo
from megaqk.optim.groups import ParameterGroup, groups_missing_on, plan_groups
from megaqk.optim.multipliers import Constant, Moment


def plan(timing: dict[str, Any], **model: Any) -> tuple[tuple[ParameterGroup, ...], tuple[ParameterInfo, ...]]:
    sections = {"model": {"num_layers": 4, "hidden_size": 16, "num_heads": 2, **model}, "qk_timing": timing}
    config = build_config(sections)
    parameters = parameter_inventory(config, rows=32)
    return plan_groups(config, parameters), parameters


def names(timing: dict[str, Any], **model: Any) -> list[str]:
    return [group.name for group in plan(timing, **model)[0]]


def test_switched_off_there_are_only_decay_and_no_decay() -> None:
    groups, parameters = plan({"multiplier": 0.5})
    assert [(group.name, group.decay, group.multiplier) for group in groups] == [
        ("decay", True, Constant(1.0)),
        ("no_decay", False, Constant(1.0)),
    ]
    assert sum(group.numel for group in groups) == sum(parameter.numel for parameter in parameters)
    assert all("norm" in name or "bias" in name for name in groups[1].parameters)


def test_the_intervention_of_the_paper() -> None:
    groups, _ = plan({"enabled": True, "multiplier": 0.2})
    assert [group.name for group in groups] == ["decay", "no_decay", "upper_qk", "upper_qk.no_decay"]
    upper = groups[2]
    assert upper.parameters == tuple(
        f"layers.{layer}.attention.qkv.{projection}_weight" for layer in (2, 3) for projection in ("query", "key")
    )
    assert upper.multiplier.at(Moment(0)) == 0.2
    assert upper.numel == 4 * 16 * 16
    assert not groups[3].decay
    assert groups[3].parameters[0] == "layers.2.attention.qkv.query_bias"


def test_without_biases_there_is_no_second_group() -> None:
    assert names({"enabled": True}, preset="llama") == ["decay", "no_decay", "upper_qk"]


def test_a_depth_profile_gives_each_layer_a_group() -> None:
    groups, _ = plan({"enabled": True, "depth_profile": "linear", "multiplier": 0.2}, preset="llama")
    assert [(group.name, group.multiplier.at(Moment(0))) for group in groups[2:]] == [
        ("upper_qk.layer02", pytest.approx(0.6)),
        ("upper_qk.layer03", 0.2),
    ]
    assert all(name.startswith("layers.2.") for name in groups[2].parameters)


def test_rules_are_numbered_and_keep_their_order() -> None:
    rules = [
        {"layers": {"fraction": [0, 0.5]}},
        {"projections": ["output", "value"]},
        {"layers": {"list": [0, 2]}, "projections": ["ffn_out", "ffn_gate", "ffn_in"]},
        {"projections": ["embedding"]},
        {"layers": {"range": [1, 3]}, "projections": ["norm"]},
        {"layers": {"list": [3]}, "projections": ["query", "key"], "depth_profile": "geometric"},
    ]
    assert names({"enabled": True, "rules": rules}, preset="llama") == [
        "decay",
        "no_decay",
        "rule0.lower_qk",
        "rule1.upper_value_output",
        "rule2.some_ffn_in_ffn_gate_ffn_out",
        "rule3.embedding",
        "rule4.middle_norm.no_decay",
        "rule5.upper_qk.layer03",
    ]


def test_all_layers_and_one_projection() -> None:
    timing = {"enabled": True, "layers": {"fraction": [0, 1]}, "projections": ["query"]}
    assert names(timing, preset="llama")[2:] == ["all_query"]


def test_a_norm_rule_leaves_the_final_norm_alone() -> None:
    groups, _ = plan({"enabled": True, "layers": {"fraction": [0, 1]}, "projections": ["norm"]})
    assert [name for name in groups[1].parameters if "norm" in name] == [
        "final_norm.norm.weight",
        "final_norm.norm.bias",
    ]


def test_every_parameter_is_in_one_group_in_the_order_of_the_model() -> None:
    groups, parameters = plan({"enabled": True, "rules": [{}, {"projections": ["value", "norm"]}]})
    order = [parameter.name for parameter in parameters]
    assert sorted(name for group in groups for name in group.parameters) == sorted(order)
    for group in groups:
        assert list(group.parameters) == sorted(group.parameters, key=order.index)


def test_the_plan_is_the_same_for_every_topology() -> None:
    model = {"num_layers": 4, "hidden_size": 16, "num_heads": 2}
    plans = set()
    for parallel in ({}, {"tensor": 2}, {"pipeline": 4}):
        config = build_config({"model": model, "parallel": parallel, "qk_timing": {"enabled": True}})
        plans.add(repr(plan_groups(config, parameter_inventory(config, rows=32))))
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("timing", "line"),
    [
        (
            {"projections": ["ffn_in", "ffn_gate"]},
            "qk_timing.projections = ffn_gate: names no parameter of this model; model.feed_forward = gelu has no gate",
        ),
        (
            {"rules": [{}, {"projections": ["ffn_gate"]}]},
            "qk_timing.rules[1].projections = ffn_gate: names no parameter of this model; "
            "model.feed_forward = gelu has no gate",
        ),
    ],
)
def test_a_projection_that_the_model_lacks_is_refused(timing: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan({"enabled": True, **timing})
    assert str(caught.value) == line


def test_groups_missing_on_a_stage() -> None:
    groups, parameters = plan({"enabled": True})
    stage0 = [parameter.name for parameter in parameters if parameter.role.layer in (None, 0, 1)]
    stage1 = [parameter.name for parameter in parameters if parameter.role.layer in (2, 3)]
    assert groups_missing_on(groups, stage0) == ["upper_qk", "upper_qk.no_decay"]
    assert groups_missing_on(groups, stage1) == []
    random.shuffle(stage0)
    assert groups_missing_on(groups, ["embedding.weight"]) == ["no_decay", "upper_qk", "upper_qk.no_decay"]
