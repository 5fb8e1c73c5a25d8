from dataclasses import replace
from typing import Any

import pytest

from megaqk.config.loading import build_config
from megaqk.model.parameters import ParameterInfo, ParameterRole, linear_roles, vector_role
from megaqk.optim.groups import plan_groups
from megaqk.parallel.world import World
from megaqk.plan_text import key_steps, resolved_plan
from megaqk.runtime.launch import Launch

MODEL = {"num_layers": 2, "hidden_size": 8, "num_heads": 2}


def parameter(name: str, shape: tuple[int, ...], role: ParameterRole, dim: int | None, *places: int) -> ParameterInfo:
    return ParameterInfo(name=name, shape=shape, shard_dim=dim, role=role, places=places)


TABLE = ParameterRole(projection="embedding", layer=None, init="vocabulary", decay=True, multiplies=True)
PARAMETERS = (
    parameter("embedding.weight", (16, 8), TABLE, 0, 0, 5),
    parameter("embedding_output.positions.weight", (4, 8), TABLE, None, 1),
    *(
        parameter(f"layers.{layer}.{projection}_weight", (8, 8), linear_roles(projection, layer)[0], 0, 2 + layer)
        for projection in ("query", "key")
        for layer in (0, 1)
    ),
    parameter("final_norm.norm.weight", (8,), vector_role("norm", None, "one"), None, 4),
)


def plan(world_size: int, **sections: Any) -> str:
    config = build_config({"model": MODEL, **sections})
    return resolved_plan(
        config, World(config, Launch(world_size=world_size)), PARAMETERS, plan_groups(config, PARAMETERS)
    )


def test_a_schedule_of_its_own_length() -> None:
    """It is at its end, and the multiplier at 1, long before the run is."""
    timing = {"enabled": True, "hold": 0.5, "release": "step"}
    text = plan(1, schedule={"steps": 40, "kind": "linear"}, training={"steps": 100}, qk_timing=timing)
    assert "length      100 steps x" in text
    assert " tokens, schedule over 40 steps\n" in text
    assert text.split("multiplier when so many steps have been taken\n")[1].split()[4:7] == ["0", "20", "99"]
    assert text.splitlines()[-1].split()[-3:] == ["0.0003", "0.000165", "3e-05"]


def test_the_plan_of_a_small_run() -> None:
    text = plan(
        4,
        run={"dir": "runs/small"},
        parallel={"tensor": 2, "pipeline": 2},
        optimizer={"lr": 0.001},
        schedule={"kind": "constant"},
        training={"steps": 100, "global_batch_size": 8, "micro_batch_size": 2, "sequence_length": 4},
        qk_timing={"enabled": True, "multiplier": 0.5},
    )
    assert text == "\n".join(
        (
            "run         runs/small",
            "length      100 steps x 8 samples x 4 tokens = 3,200 tokens",
            "model       2 layers, hidden 8, 2 heads (2 key/value) of 4, gelu 32, layernorm, learned positions",
            "parameters  424, of which 160 in embeddings and head",
            "processes   4 = pipeline 2 x data 1 x tensor 2, ZeRO-1, fp32",
            "a step      4 micro-batches of 2 samples on every replica, pipeline bubble 20.0%",
            "",
            "Stages",
            "stage         layers  parameters  on each rank",
            "    0  0 + embedding         288           160",
            "    1  1 + tied head         264           136",
            "",
            "Ranks",
            "rank  pipeline  data  tensor",
            "   0         0     0       0",
            "   1         0     0       1",
            "   2         1     0       0",
            "   3         1     0       1",
            "",
            "Parameter groups, and their multiplier when so many steps have been taken",
            "group               tensors  parameters  decay      0     10     15     20     99",
            "decay                     4         288    0.1      1      1      1      1      1",
            "no_decay                  1           8      0      1      1      1      1      1",
            "upper_qk                  2         128    0.1    0.5    0.5   0.75      1      1",
            "lr at multiplier 1                              0.001  0.001  0.001  0.001  0.001",
        )
    )


def test_an_untied_head_is_held_by_the_last_stage_alone() -> None:
    config = build_config({"model": {**MODEL, "tied_embedding": False}, "parallel": {"pipeline": 2}})
    table, *rest = PARAMETERS
    head = parameter("head.weight", (16, 8), TABLE, 0, 5)
    parameters = (replace(table, places=(0,)), *rest, head)
    lines = resolved_plan(
        config, World(config, Launch(world_size=2)), parameters, plan_groups(config, parameters)
    ).splitlines()
    assert lines[9].split() == ["0", "0", "+", "embedding", "288", "288"]
    assert lines[10].split() == ["1", "1", "+", "head", "264", "264"]


def test_a_stage_without_layers_is_shown() -> None:
    lines = plan(3, parallel={"pipeline": 3, "layers_per_stage": [0, 2, 0]}).splitlines()
    assert lines[9].split()[1:4] == ["none", "+", "embedding"]
    assert lines[10].split()[1] == "0-1"


def test_many_ranks_are_cut() -> None:
    lines = plan(32, training={"global_batch_size": 32, "micro_batch_size": 1}).splitlines()
    first = lines.index("Ranks") + 2
    assert lines[first + 8].split() == ["...", "...", "...", "..."]
    assert lines[first + 16].split() == ["31", "0", "31", "0"]


@pytest.mark.parametrize(
    ("timing", "steps"),
    [
        ({"enabled": False}, [0, 999]),
        ({"enabled": True, "hold": 0.5, "release_end": 1.0}, [0, 500, 750, 999]),
        ({"enabled": True, "unit": "steps", "hold": 10, "release": "step"}, [0, 10, 999]),
        ({"enabled": True, "unit": "tokens", "hold": 32768, "release_end": 98304}, [0, 1, 2, 3, 999]),
    ],
)
def test_the_steps_worth_showing(timing: dict[str, Any], steps: list[int]) -> None:
    config = build_config({"model": MODEL, "qk_timing": timing})
    assert key_steps(config, plan_groups(config, PARAMETERS)) == steps


def test_a_multiplier_that_is_never_released_is_said() -> None:
    timing = {"enabled": True, "unit": "steps", "hold": 100, "release_end": 200}
    assert plan(1, training={"steps": 100}, qk_timing=timing).endswith("Not released by the end of the run: upper_qk")
    assert "Not released" not in plan(1, training={"steps": 201}, qk_timing=timing)
