from pathlib import Path
from typing import Any

import pytest

from megaqk.config.loading import dump_config
from megaqk.config.yaml_text import format_yaml, parse_yaml
from megaqk.errors import UserError
from megaqk.studies.plan import Study, check_same, load_study

STUDY: dict[str, Any] = {
    "name": "pair",
    "base": {"model": {"num_layers": 2}, "optimizer": {"lr": 1e-3}, "training": {"steps": 5}},
    "seeds": [7, 3],
    "arms": {
        "plain": {},
        "timed": {"qk_timing": {"enabled": True, "layers": {"list": [1]}}, "optimizer": {"lr": 3e-3}},
    },
    "comparisons": [["timed", "plain"]],
    "sizes": {
        "small": {},
        "large": {"seeds": [1], "processes": 4, "config": {"model": {"num_layers": 4}, "optimizer": {"lr": 2e-3}}},
    },
}


def load(folder: Path, size: str = "small", overrides: tuple[str, ...] = (), **changes: Any) -> Study:
    path = folder / "pair.yaml"
    path.write_text(format_yaml({**STUDY, **changes}))
    return load_study(path, size, folder / "out", overrides)


def test_arms_are_laid_over_the_size_over_the_base(tmp_path: Path) -> None:
    study = load(tmp_path, "large")
    assert [(run.arm, run.seed, run.config.model.num_layers, run.config.optimizer.lr) for run in study.runs] == [
        ("plain", 1, 4, 2e-3),
        ("timed", 1, 4, 3e-3),
    ]
    assert study.processes == 4
    assert study.runs[1].folder == tmp_path / "out" / "timed" / "seed-1"


def test_what_a_size_says_of_an_arm_is_laid_over_it(tmp_path: Path) -> None:
    runs = load(tmp_path, sizes={"small": {"arms": {"timed": {"optimizer": {"lr": 5e-3}}}}}).runs[:2]
    assert [(run.arm, run.config.optimizer.lr) for run in runs] == [("plain", 1e-3), ("timed", 5e-3)]
    assert runs[1].config.qk_timing.enabled


def test_every_arm_has_every_seed_and_seeds_come_one_by_one(tmp_path: Path) -> None:
    runs = load(tmp_path).runs
    assert [run.name for run in runs] == ["plain/seed-7", "timed/seed-7", "plain/seed-3", "timed/seed-3"]
    assert [run.config.training.seed for run in runs] == [7, 7, 3, 3]


def test_a_size_does_not_leak_into_what_it_is_laid_over(tmp_path: Path) -> None:
    base = {**STUDY["base"], "qk_timing": {"layers": {"fraction": [0.5, 1]}}}
    plain, timed = load(tmp_path, base=base).runs[:2]
    assert plain.config.qk_timing.layers.fraction == (0.5, 1)
    # Another way of naming layers replaces the one below it.
    assert (timed.config.qk_timing.layers.fraction, timed.config.qk_timing.layers.list) == (None, (1,))


def test_overrides_are_for_all_runs(tmp_path: Path) -> None:
    assert {run.config.optimizer.lr for run in load(tmp_path, overrides=("optimizer.lr=0.5",)).runs} == {0.5}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"armz": {}}, r"armz = {}: unknown key; did you mean arms\?"),
        ({"comparisons": [["timed", "timed"]]}, r"comparisons = \[timed, timed\]: must be two arms, and once"),
        ({"baseline": "plain"}, r"comparisons = \[timed, plain\]: must be two arms, and once"),
        ({"extends": ["a.yaml"]}, r"extends = \[a.yaml\]: must be the name of a file"),
        (
            {"base": {"model": {"num_layers": 1}}, "arms": {"plain": {}, "timed": {"optimizer": {"lr": 0.1}}}},
            "arm plain: model.num_layers = 1: must be at least 2 for an analysis",
        ),
        ({"baseline": "none"}, "baseline = none: must be an arm: plain, timed"),
        ({"seeds": []}, r"seeds = \[\]: must have at least 1 entry"),
        ({"seeds": [1, 1]}, "seeds = .*: must name a seed once"),
        ({"comparisons": [["timed", "plane"]]}, r"comparisons\[0\] = plane: must be an arm: plain, timed"),
        ({"sizes": {"small": {"arms": {"tined": {}}}}}, "sizes.small.arms = tined: must be an arm: plain, timed"),
        ({"arms": {"a/b": {}}, "comparisons": []}, "arms = a/b: must be a name of letters, digits"),
        ({"arms": {"one": {}, "two": {}}, "comparisons": []}, "arms one and two are the same configuration"),
        (
            {"arms": {"plain": {}, "timed": {"model": {"num_layer": 3}}}},
            r"arm timed: model.num_layer = 3: unknown key; did you mean",
        ),
    ],
)
def test_what_a_study_file_may_not_say(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"pair.yaml: {line}"):
        load(tmp_path, **changes)


def test_a_grid_has_an_arm_for_each_choice_and_the_baseline_is_compared_with_all(tmp_path: Path) -> None:
    grid = {
        "rate": {"slow": {"optimizer": {"lr": 1e-4}}, "fast": {"optimizer": {"lr": 1e-2}}},
        "depth": {"two": {"model": {"num_layers": 2}}, "four": {"model": {"num_layers": 4}}},
    }
    study = load(tmp_path, arms={"plain": {}}, grid=grid, baseline="plain", comparisons=[["fast-two", "slow-two"]])
    found = {run.arm: (run.config.optimizer.lr, run.config.model.num_layers) for run in study.runs}
    assert found == {
        "plain": (1e-3, 2), "slow-two": (1e-4, 2), "slow-four": (1e-4, 4), "fast-two": (1e-2, 2), "fast-four": (1e-2, 4)
    }  # fmt: skip
    against = [(arm, "plain") for arm in list(found)[1:]]
    assert study.spec.all_comparisons == (*against, ("fast-two", "slow-two"))


def test_a_study_lies_over_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text(format_yaml({key: STUDY[key] for key in ("base", "sizes")}))
    own = {key: value for key, value in STUDY.items() if key not in ("base", "sizes")}
    path = tmp_path / "own.yaml"
    path.write_text(format_yaml({**own, "extends": "common.yaml", "base": {"optimizer": {"lr": 0.5}}}))
    plain = load_study(path, "small").runs[0].config
    assert (plain.optimizer.lr, plain.model.num_layers) == (0.5, 2)
    path.write_text(format_yaml({**own, "extends": "nowhere.yaml"}))
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_study(path, "small")


@pytest.mark.parametrize(("key", "instead"), [("run.dir=x", "--output"), ("training.seed=4", "--seed")])
def test_what_is_the_study_s_own_is_no_override(tmp_path: Path, key: str, instead: str) -> None:
    with pytest.raises(UserError, match=f"{key}: .* is the study's own; use {instead}"):
        load(tmp_path, overrides=(key,))


def test_an_unknown_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--size = huge: must be one of small, large"):
        load(tmp_path, "huge")


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    run = load(tmp_path).runs[0]
    check_same(run)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    check_same(run)
    other = load(tmp_path, overrides=("optimizer.lr=0.5",)).runs[0]
    with pytest.raises(UserError, match=r"plain/seed-7: holds another run: optimizer.lr = 0.5, was 0.001; choose"):
        check_same(other)


def test_the_folder_of_another_study_stays_as_it_is(tmp_path: Path) -> None:
    load(tmp_path).keep("first")
    before = (tmp_path / "out" / "study.yaml").read_text()
    for changes, line in (
        ({"name": "other"}, "name = pair: is another study than other"),
        ({"arms": {"plain": {}}, "comparisons": []}, "has the arm timed, which this study lacks"),
    ):
        with pytest.raises(UserError, match=f"study.yaml: {line}"):
            load(tmp_path, **changes).keep("second")
    with pytest.raises(UserError, match="size = small: is another study than large"):
        load(tmp_path, "large").keep("second")
    assert (tmp_path / "out" / "study.yaml").read_text() == before
    load(tmp_path, arms={**STUDY["arms"], "more": {"optimizer": {"lr": 0.1}}}).keep("second")


def test_the_folder_says_what_was_run(tmp_path: Path) -> None:
    study = load(tmp_path, "large")
    study.keep("megaqk study run pair.yaml --size large")
    kept = parse_yaml((study.folder / "study.yaml").read_text())
    assert kept["name"] == "pair"
    assert (kept["size"], kept["seeds"], list(kept["arms"])) == ("large", [1], ["plain", "timed"])
    assert kept["command"] == "megaqk study run pair.yaml --size large"
    assert kept["comparisons"] == [["timed", "plain"]]
