"""A report of runs that are missing, unlike each other, or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaqk import cli
from megaqk.studies.plan import load_study
from tests.unit.studies.made_study import FILE, make_study, write_run
from tests.unit.studies.report_page import Page, change_analysis, change_yaml, report, words_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Page, str]:
    folder = make_study(tmp_path_factory.mktemp("study"))
    return folder, *report(folder)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["study", "report", str(folder)]) == 2
    return capsys.readouterr().err


def test_an_incomplete_study_says_so_and_takes_pairs_that_are_complete(tmp_path: Path) -> None:
    folder = make_study(tmp_path, probes=False, without=("baseline/seed-1", "timed/seed-2", "worse/seed-1"))
    runs = {run.name: run for run in load_study(tmp_path / "made.yaml", "cpu", folder).runs}
    write_run(runs["timed/seed-2"], state="diverged", torch="2.14.0")
    numbers, page, text = report(folder)
    said = (
        "This study is incomplete: 3 of 9 runs have no final loss: baseline/seed-1 (missing), timed/seed-2 (diverged), "
        "worse/seed-1 (missing)."
    )
    assert page.words.index(said) < page.words.index("Final loss")
    assert text.index(said) < text.index("## Final loss")
    assert "Runs differ in torch: 2.13.0, 2.14.0." in text
    assert not numbers["complete"]
    one = numbers["differences"]["loss"]["timed vs baseline"]
    assert (one["by_seed"], one["t_interval"]) == ({"3": pytest.approx(-0.3)}, None)
    assert numbers["differences"]["loss"]["worse vs baseline"]["n"] == 2
    assert numbers["arms"]["loss"]["timed"]["n"] == 2
    assert ["timed", "3", "2", "2 finished, 1 diverged"] in page.rows
    # Without probes and analyses their sections say what is missing.
    assert set(page.figures) == {"final-loss", "learning-curves", "loss-difference"}
    for words in (
        "No finished run has probes (`probes.every`).",
        "No finished run has been analysed: `megaqk probe` writes",
    ):
        assert words in page.words
        assert words in text


def test_an_arm_of_which_one_run_never_gets_there_has_no_mean(whole: Path) -> None:
    def soft(analysis: dict[str, Any]) -> None:
        analysis["attention_entropy"] = [[[0.9] * 2] * 4] * 3

    change_analysis(whole / "timed/seed-2", soft)
    numbers, page, text = words_of(whole)
    one = numbers["arms"]["upper_sharp"]["timed"]
    assert one == {"by_seed": {"1": 2500, "2": None, "3": 2500}, "n": 2, "mean": None, "deviation": None}
    pairs = numbers["differences"]["upper_sharp"]["timed vs baseline"]
    assert pairs["by_seed"] == {"1": pytest.approx(500), "2": None, "3": pytest.approx(500)}
    assert (pairs["mean"], pairs["deviation"], pairs["t_interval"], pairs["p"]) == (None,) * 4
    for first in ("timed", "timed vs baseline"):
        assert [first, "3", "– (2 of 3)", "– (2 of 3)"] in [row[:4] for row in page.rows]  # noqa: RUF001
    assert "they are sharp from 0.3000 (half of the way" in text


def test_baselines_that_hardly_sharpen_set_no_threshold(whole: Path) -> None:
    def hardly(analysis: dict[str, Any]) -> None:
        analysis["attention_entropy"] = [[[1 - sharp] * 2] * 4 for sharp in (8.9e-5, 5e-4, 1e-3)]

    for seed in (1, 2, 3):
        change_analysis(whole / f"baseline/seed-{seed}", hardly)
    numbers, page, text = words_of(whole)
    assert numbers["sharpness_threshold"] is None
    assert "there is no sharpness to reach, since that of the baselines is not known to rise by 0.01;" in text
    # Columns stay: that no run gets there is a result.
    row = ["baseline", "3", "– (0 of 3)", "– (0 of 3)", "1,375 ± 0"]  # noqa: RUF001
    assert row in page.rows


def test_nothing_is_early_before_the_first_step(whole: Path) -> None:
    def initial(analysis: dict[str, Any]) -> None:
        analysis["tokens"][0] = 0

    change_analysis(whole / "timed/seed-1", initial)
    assert words_of(whole)[0]["arms"]["reliance/early_heads"]["timed"]["by_seed"] == {
        "1": None,
        "2": pytest.approx(0.3),
        "3": pytest.approx(0.3),
    }


def test_the_sum_of_some_steps_is_no_factor(whole: Path) -> None:
    def unknown(analysis: dict[str, Any]) -> None:
        analysis["pathwise"][0]["step_size_factor"] = {"query": [None] * 4, "key": [None] * 4}

    change_analysis(whole / "timed/seed-1", unknown)
    found = words_of(whole)[0]["arms"]["step_size_factor/upper"]["timed"]
    assert found["by_seed"] == {"1": None, "2": pytest.approx(0.1), "3": pytest.approx(0.1)}


def test_what_makes_runs_unlike_is_said(whole: Path, made: Any) -> None:
    alike = "and all arms learn from the same samples in the same order"
    assert alike in made[3]
    assert "Analyses are not" not in made[3]
    for key, value in (("num_layers: 4", "num_layers: 6"), ("steps: 30", "steps: 40"), ("seed: 3", "seed: 4")):
        path = whole / "timed/seed-3/config.yaml"
        path.write_text(path.read_text().replace(key, value, 1))
    change_analysis(whole / "timed/seed-1", lambda analysis: analysis.update(upper=[3], probe_tokens=32))
    change_analysis(whole / "worse/seed-3", lambda analysis: analysis.update(upper=[3]))
    _, page, text = words_of(whole)
    assert alike not in text
    for said in (
        "Runs of one seed do not learn from the same samples in the same order in all arms; they differ in "
        "training.steps, training.seed.",
        "Analyses are not made alike: upper is not that of baseline/seed-1 in timed/seed-1, worse/seed-3.",
        "Analyses are not made alike: probe_tokens is not that of baseline/seed-1 in timed/seed-1.",
    ):
        assert text.index(said) < text.index("## Final loss")
        assert said in page.words


def test_a_study_of_which_nothing_is_finished(tmp_path: Path) -> None:
    arms = [f"{arm}/seed-{seed}" for arm in ("baseline", "timed", "worse") for seed in (1, 2, 3)]
    numbers, page, _ = report(make_study(tmp_path, without=tuple(arms)))
    assert "9 of 9 runs have no final loss" in page.words
    assert (numbers["arms"], page.figures) == ({}, [])


def test_runs_of_one_arm_that_differ_are_said(tmp_path: Path) -> None:
    folder = make_study(tmp_path, probes=False, file=FILE.replace(", multiplier: 0.25", ""))
    path = folder / "timed/seed-3/config.yaml"
    path.write_text(path.read_text().replace("num_layers: 4", "num_layers: 6"))
    _, page, text = report(folder)
    # Two keys of three arms are columns.
    assert ["arm", "optimizer.lr", "qk_timing.enabled"] in page.rows
    assert ["timed", "0.0003", "true"] in page.rows
    # The same runs give the same report.
    report(folder, "--output", str(tmp_path / "again"))
    for path in ("report.json", "figures/final-loss.png", "figures/final-loss.pdf"):
        assert (tmp_path / "again" / path).read_bytes() == (folder / "report" / path).read_bytes()
    assert "The runs of arm timed do not have one configuration; they differ in model.num_layers." in text


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "report", str(tmp_path)]) == 2
    assert f"{tmp_path}: must be the folder of a study, with study.yaml in it" in capsys.readouterr().err
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "made"}))
    assert cli.main(["study", "report", str(tmp_path)]) == 2
    assert "study.yaml: is damaged: description: must be given; it must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 4}, "seeds = 4: must be a list"),
        ({"comparisons": [["timed"]]}, "comparisons[0] = [timed]: must have 2 entries"),
        ({"comparisons": [["timed", "tmied"]]}, "comparisons = tmied: must be an arm: baseline, timed, worse"),
    ],
)
def test_a_damaged_plan_is_one_line(
    whole: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_yaml(whole / "study.yaml", changes)
    assert f"{whole}/study.yaml: is damaged: {said}; it must be" in refused(whole, capsys)


def test_a_damaged_analysis_is_one_line(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = whole / "timed/seed-1/analysis.json"
    analysis = json.loads(path.read_text())
    pair = {key: value for key, value in analysis["pathwise"][0].items() if key != "share"}
    again = "remove it; the next `megaqk study run` makes it again"
    for content, said in (
        ("{", "must be a JSON object"),
        ("{}", "steps: must be given"),
        (analysis | {"pathwise": [pair]}, "pathwise[0].share: must be given"),
        (analysis | {"pathwise": [analysis["pathwise"][0] | {"to": 21}]}, "pathwise[0].to = 21: must be one of steps"),
        (analysis | {"tokens": [1]}, "tokens = 1: must have 3 entries, as steps has"),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        words = refused(whole, capsys)
        assert f"{path}: is damaged" in words
        assert words.endswith(f"{said}; {again}\n")


def test_a_probe_without_tokens_is_one_line(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = whole / "timed/seed-1/probes.jsonl"
    path.write_text(path.read_text().replace('"tokens": 2000, ', ""))
    assert f"{path}: the record of step 20 has no number of tokens" in refused(whole, capsys)


def test_a_plan_without_interactions_is_read(whole: Path) -> None:
    change_yaml(whole / "study.yaml", {"interactions": None})
    assert words_of(whole)[0]["interactions"] == []
