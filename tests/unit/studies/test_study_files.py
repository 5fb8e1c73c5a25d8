"""The studies that the product ships: every run can be built, and arms differ in what their names say alone."""

from functools import cache
from pathlib import Path

import pytest

from megaqk.model.decoder import parameter_inventory
from megaqk.optim.groups import plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.rates import Rates
from megaqk.studies.plan import Run, Study, differing_keys, load_study

FOLDER = Path(__file__).parents[3] / "configs" / "studies"
NAMES = ("qk_timing", "ablation", "controls", "sweep", "rivals")
SIZES = ("cpu", "gpu", "cluster")

ON = {"qk_timing.enabled": "true"}
FOR_GOOD = {"qk_timing.hold": "1.0", "qk_timing.release": "step"}
LLAMA = {
    "model.preset": "llama",
    "model.norm": "rmsnorm",
    "model.bias": "false",
    "model.feed_forward": "swiglu",
    "model.positions": "rotary",
}
ALL = {"qk_timing.layers.fraction": "[0.0, 1.0]"}
CHANGES = {
    "gated": {"model.feed_forward": "swiglu"},
    "rmsnorm": {"model.norm": "rmsnorm"},
    "no-bias": {"model.bias": "false"},
    "rotary": {"model.positions": "rotary"},
}
BASELINES = {
    "qk_timing": "gpt-baseline",
    "ablation": "gpt",
    "controls": "baseline",
    "sweep": "baseline",
    "rivals": "baseline",
}

EXPECTED: dict[str, dict[str, dict[str, str]]] = {
    "qk_timing": {"gpt-timed": ON, "llama-baseline": LLAMA, "llama-timed": {**LLAMA, **ON}},
    "ablation": {
        "gpt-timed": ON,
        **CHANGES,
        **{f"{name}-timed": {**change, **ON} for name, change in CHANGES.items()},
    },
    "controls": {
        "timed": ON,
        "upper-value-output": {**ON, "qk_timing.projections": "[value, output]"},
        "lower-qk": {**ON, "qk_timing.layers.fraction": "[0.0, 0.5]"},
        "all-qk": {**ON, **ALL},
        "spread": {**ON, **FOR_GOOD, "qk_timing.multiplier": "*"},
    },
    "sweep": {
        f"{place}-m{multiplier}-h{hold}": {
            **ON,
            "qk_timing.layers.fraction": f"[{low}, 1.0]",
            "qk_timing.multiplier": multiplier,
            "qk_timing.hold": hold,
            "qk_timing.release_end": str(2 * float(hold)),
        }
        for place, low in (("quarter", 0.75), ("half", 0.5), ("most", 0.25))
        for multiplier in ("0.03", "0.1", "0.3")
        for hold in ("0.1", "0.2", "0.4")
    },
    "rivals": {
        "timed": ON,
        "qk-norm": {"model.qk_norm": "true"},
        "qk-clip": {"qk_clip.threshold": "*"},
        "long-warmup": {"schedule.warmup_steps": "*"},
        "slow-qk-0.1": {**ON, **FOR_GOOD, **ALL},
        "slow-qk-0.3": {**ON, **FOR_GOOD, **ALL, "qk_timing.multiplier": "0.3"},
    },
}
"""What each arm has other than the baseline; * is what depends on the size."""


@cache
def study(name: str, size: str) -> Study:
    return load_study(FOLDER / f"{name}.yaml", size)


def arms(name: str, size: str) -> dict[str, Run]:
    """The runs of the first seed, by arm."""
    found = study(name, size)
    return {run.arm: run for run in found.runs[: len(found.spec.all_arms)]}


def test_the_sweep_of_the_baselines_is_of_the_same_runs() -> None:
    for run in study("baseline_lr", "cpu").runs:
        block = run.arm.split("-")[0]
        lines = differing_keys(run.config, arms("qk_timing", "cpu")[f"{block}-baseline"].config)
        differing = {line.split(" = ")[0] for line in lines}
        kept = {"probes.every", "checkpoint.every", "checkpoint.keep_every", "training.seed", "training.steps"}
        off = {f"qk_timing.{key}" for key in ("hold", "release", "release_end")}  # of what is not enabled
        assert differing <= {"optimizer.lr", *kept, *off}


def baseline(size: str) -> Run:
    return arms("qk_timing", size)["gpt-baseline"]


def parameters(run: Run) -> int:
    return sum(info.numel for info in parameter_inventory(run.config, rows=run.config.data.vocab_size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_arms_differ_in_what_their_names_say(name: str, size: str) -> None:
    found = arms(name, size)
    assert found.keys() - {BASELINES.get(name)} == EXPECTED[name].keys()
    for arm, expected in EXPECTED[name].items():
        lines = differing_keys(found[arm].config, baseline(size).config)
        differing = {key: value.split(", was ")[0] for key, value in (line.split(" = ", 1) for line in lines)}
        if arm.startswith("llama"):
            differing.pop("optimizer.lr", None)  # each block at its own best
        # What the intervention has by itself is not seen where an arm sets it to the same.
        same = {
            "qk_timing.layers.fraction": "[0.5, 1.0]",
            "qk_timing.multiplier": "0.1",
            "qk_timing.hold": "0.2",
            "qk_timing.release_end": "0.4",
        }
        expected = {key: value for key, value in expected.items() if same.get(key) != value}
        assert {key: value if expected.get(key) != "*" else "*" for key, value in differing.items()} == expected, arm


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_all_studies_have_one_baseline_and_its_seeds(name: str, size: str) -> None:
    found = study(name, size)
    assert set(found.spec.seeds) <= set(study("qk_timing", size).spec.seeds)
    if name in BASELINES:
        assert differing_keys(arms(name, size)[BASELINES[name]].config, baseline(size).config) == []
    # The setting of the quickstart, fixed before any run.
    rule = baseline(size).config.qk_timing
    assert (rule.layers.fraction, rule.projections) == ((0.5, 1.0), ("query", "key"))
    assert (rule.multiplier, rule.hold, rule.release, rule.release_end) == (0.1, 0.2, "cosine", 0.4)
    # Each says its own command, by size.
    head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("name:")[0]
    for command in (f"megaqk study run configs/studies/{name}.yaml --size cpu", "--size gpu", f"{name}.yaml cluster"):
        assert command in head


@pytest.mark.parametrize("size", SIZES)
def test_ablations_have_as_many_parameters(size: str) -> None:
    ends = arms("qk_timing", size)
    count = parameters(ends["gpt-baseline"])
    for run in arms("ablation", size).values():
        assert parameters(run) == pytest.approx(count, rel=0.02), run.arm
    # All changes together.
    assert parameters(ends["llama-baseline"]) == pytest.approx(count, rel=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_the_same_step_size_spread_over_the_run(size: str) -> None:
    sums = []
    for arm in ("timed", "spread"):
        config = arms("controls", size)[arm].config
        rates = Rates(config, plan_groups(config, parameter_inventory(config, rows=config.data.vocab_size)))
        steps = (rates.at(Moment(step)) for step in range(config.training.steps))
        sums.append(sum(rate.lr for now in steps for rate in now if rate.name == "upper_qk"))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_what_depends_on_the_size(size: str) -> None:
    found = arms("rivals", size)
    config = found["long-warmup"].config
    assert config.schedule.warmup_steps == round(0.4 * config.training.steps)
    assert found["qk-clip"].config.qk_clip.threshold == {"cpu": 5.0, "gpu": 30.0, "cluster": 100.0}[size]
    tokens = config.training.steps * config.training.tokens_per_step
    if size != "cpu":
        assert tokens / parameters(found["baseline"]) == pytest.approx(20, rel=0.02)


def test_the_cluster_s_shapes_are_those_of_the_270m_configurations() -> None:
    from megaqk.config.loading import load_config

    for block in ("gpt", "llama"):
        ours = arms("qk_timing", "cluster")[f"{block}-timed"].config
        theirs = load_config(FOLDER.parent / f"{block}-270m.yaml")
        differing = {line.split(" = ")[0] for line in differing_keys(ours, theirs)}
        allowed = {
            "probes.every",
            "checkpoint.every",
            "checkpoint.keep",
            "checkpoint.keep_every",
            "evaluation.every",
            "evaluation.test",
        }
        allowed |= {"qk_timing.hold", "qk_timing.release", "qk_timing.release_end", "training.seed"}
        assert differing <= allowed, differing
