import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaqk import cli
from megaqk.studies.figures import draw_plot, looks
from megaqk.studies.html import to_html
from megaqk.studies.markdown import to_markdown
from megaqk.studies.numbers import compute
from megaqk.studies.plan import load_study
from megaqk.studies.report_text import compose
from megaqk.studies.series import Panel, Plot, deviation_band, log_band
from megaqk.studies.study_runs import read_study
from tests.unit.studies.made_study import FILE, make_study, write_run

FIGURES = {
    "final-loss", "learning-curves", "loss-difference", "entropy", "write-energy", "timing", "pathwise", "logit-growth",
    "reliance", "write-energy-by-layer",
}  # fmt: skip


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.figures: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "figure":
            self.figures.append(values["id"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def report(folder: Path, *words: str) -> tuple[dict[str, Any], Page, str]:
    assert cli.main(["study", "report", str(folder), *words]) == 0
    output = Path(words[1]) if words else folder / "report"
    page = Page((output / "report.html").read_text())
    assert page.open == []
    return json.loads((output / "report.json").read_text()), page, (output / "report.md").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Page, str]:
    folder = make_study(tmp_path_factory.mktemp("study"))
    return folder, *report(folder)


def words_of(folder: Path) -> tuple[dict[str, Any], Page, str]:
    """As `report`, without figures, which take most of its time."""
    study = read_study(folder)
    numbers = compute(study)
    document = compose(study, numbers, {}, "")
    plain = json.loads(json.dumps({**asdict(numbers), "interactions": study.interactions}, default=str))
    return plain, Page(to_html(document)), to_markdown(document)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["study", "report", str(folder)]) == 2
    return capsys.readouterr().err


def change_yaml(path: Path, changes: dict[str, Any]) -> None:
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def change_analysis(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    analysis = json.loads((path / "analysis.json").read_text())
    change(analysis)
    (path / "analysis.json").write_text(json.dumps(analysis))


def test_losses_and_paired_differences(made: Any) -> None:
    _, numbers, page, text = made
    assert numbers["complete"]
    baseline = numbers["arms"]["loss"]["baseline"]
    assert (baseline["n"], baseline["mean"], baseline["deviation"]) == (3, pytest.approx(3.2), pytest.approx(0.1))
    assert baseline["by_seed"] == {"1": 3.1, "2": 3.2, "3": 3.3}
    timed = numbers["differences"]["loss"]["timed vs baseline"]
    assert timed["by_seed"] == {"1": pytest.approx(-0.1), "2": pytest.approx(-0.2), "3": pytest.approx(-0.3)}
    assert timed["t_interval"] == pytest.approx([-0.448414, 0.048414], abs=1e-6)
    # t(1 - 0.05 / 3 / 2, 2) = 7.64890
    assert timed["simultaneous_interval"] == pytest.approx([-0.641604, 0.241604], abs=1e-5)
    both = numbers["differences"]["loss"]["(worse - baseline) - (timed - baseline)"]
    assert both["by_seed"] == {"1": pytest.approx(0.2), "2": pytest.approx(0.3), "3": pytest.approx(0.4)}
    assert timed["p_holm"] == timed["p"] == pytest.approx(0.074180, abs=1e-6)
    # The other one has the same difference for all seeds, but for rounding, so that its p comes first.
    assert numbers["differences"]["loss"]["worse vs baseline"]["p"] < 1e-10
    row = next(row for row in page.rows if row[:3] == ["timed vs baseline", "3", "-0.2000"])
    assert row[3:5] + row[6:] == ["0.1000", "[-0.4484, +0.0484]", "[-0.6416, +0.2416]", "0.0742", "0.0742"]
    assert f"| {' | '.join(row)} |" in text
    assert ["timed", "3", "3.0000 ± 0.0000", "20.086 ± 0.000"] in page.rows


def test_token_efficiency(made: Any) -> None:
    _, numbers, page, text = made
    reach = numbers["reach"]["timed vs baseline"]
    assert reach["tokens"] == {"1": pytest.approx(2900), "2": pytest.approx(2800), "3": pytest.approx(2700)}
    assert reach["saved"]["mean"] == pytest.approx(0.2 / 3)
    never = numbers["reach"]["worse vs baseline"]
    assert never["tokens"] == {"1": None, "2": None, "3": None}
    assert never["saved"]["mean"] is None
    assert ["timed vs baseline", "3 of 3", "1: 96.7%, 2: 93.3%, 3: 90.0%", "+6.7%"] in [row[:4] for row in page.rows]
    assert "| worse vs baseline | 0 of 3 | 1: not reached, 2: not reached, 3: not reached | – |" in text  # noqa: RUF001


@pytest.mark.parametrize(
    ("key", "baseline", "change"),
    [
        ("accuracy/agreement", 0.5, 0.25),
        ("attention_entropy/lower", 0.8, 0.0),
        ("attention_entropy/upper", 0.5, 0.2),
        # Geometric means: of 0.4 and 0.6, of 2 and 4.
        ("attention_write_energy/upper", 0.24**0.5, 0.0),
        ("ffn_write_energy/upper", 8**0.5, 2 - 8**0.5),
        ("upper_sharp", 2000, 500),
        ("lower_stable", 1375, 0),
        ("timing_index", 625, 500),
        ("own_timing/tokens", -300, 0),
        ("step_size_factor/upper", 0.2, -0.1),
        ("step_size_factor/lower", 0.2, 0.0),
        ("residual_energy/upper", 4.0, 0.0),
        ("total/upper", 0.5, 0.0),
        ("share/interaction/upper", -0.25, 0.0),
        ("reliance/upper", 0.35, 0.0),
        ("reliance/early_heads", 0.3, 0.0),
        ("reliance/late_heads", 0.1, 0.0),
    ],
)
def test_what_shows_the_mechanism(made: Any, key: str, baseline: float, change: float) -> None:
    _, numbers, page, text = made
    assert numbers["arms"][key]["baseline"]["mean"] == pytest.approx(baseline)
    assert numbers["differences"][key]["timed vs baseline"]["mean"] == pytest.approx(change, abs=1e-9)
    title = numbers["measures"][key]
    column = next(row.index(title) for row in page.rows if title in row)
    assert any(
        row[0] == "baseline" and f"{baseline:.4g}" in row[column].replace(",", "") for row in page.rows if row[column:]
    )
    assert title in text


def test_curves_are_means_over_seeds(made: Any) -> None:
    plots = {plot["name"]: plot["panels"] for plot in made[1]["plots"]}
    band = plots["learning-curves"][0]["bands"]["baseline"]
    assert (band["x"], band["mean"]) == ([1000, 2000, 3000], pytest.approx([5, 4, 3.2]))
    assert (band["low"][2], band["high"][2]) == (pytest.approx(3.1), pytest.approx(3.3))
    band = plots["loss-difference"][0]["bands"]["timed vs baseline"]
    assert (band["mean"], band["low"][2]) == (pytest.approx([0, 0, -0.2]), pytest.approx(-0.448414, abs=1e-6))
    panels = plots["write-energy-by-layer"]
    assert [panel["log"] for panel in panels] == [True, True]
    assert [panel["bands"]["timed"]["mean"] for panel in panels] == [
        pytest.approx([0.1, 0.3, 0.4, 0.6]),
        pytest.approx([1, 1, 2, 2]),
    ]
    assert plots["reliance"][0]["bands"]["timed"]["mean"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert plots["timing"][0]["bands"]["timed"]["mean"] == pytest.approx([0.1, 0.2, 0.4])


def test_every_figure_is_in_the_page_and_nothing_comes_from_elsewhere(made: Any) -> None:
    folder, _, page, text = made
    assert set(page.figures) == FIGURES
    assert len(page.links) == len(FIGURES)
    assert all(link.startswith("data:image/png;base64,iVBOR") for link in page.links)
    html = (folder / "report/report.html").read_text()
    assert not any(word in html for word in ("http:", "https:", "url(", "@import", "<script", "<link"))
    for name in FIGURES:
        assert (folder / f"report/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"report/figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f"(figures/{name}.png)" in text


def test_configurations_versions_and_commands(made: Any) -> None:
    folder, numbers, page, text = made
    assert numbers["differing_keys"]["optimizer.lr"] == {"baseline": 0.0003, "timed": 0.0003, "worse": 0.01}
    assert set(numbers["differing_keys"]) == {"optimizer.lr", "qk_timing.enabled", "qk_timing.multiplier"}
    assert ["qk_timing.enabled", "false", "true", "false"] in page.rows
    assert ["torch", "2.13.0", "9"] in page.rows
    assert ["timed", "3", "3", "3 finished"] in page.rows
    for command in ("megaqk study run made.yaml --size cpu", f"megaqk study report {folder}"):
        assert f"    {command}\n" in text
        assert command in page.words
    assert "Known numbers | <b>and</b> awkward letters." in page.words


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


def test_reporting_does_not_import_deepspeed() -> None:
    code = "import sys, megaqk.studies.report; sys.exit(bool({'deepspeed', 'torch', 'scipy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_energies_have_a_logarithmic_axis() -> None:
    panel = Panel(title="", y="", bands={"a": log_band([{1: 1.0, 2: 2.0}, {1: 100.0, 2: 2.0}])}, log=True)
    axes = draw_plot(Plot(name="", title="", caption="", x="", panels=[panel]), looks(["a"], {})).axes[0]
    assert axes.get_yscale() == "log"


def test_many_lines_have_no_bands() -> None:
    band = deviation_band([{1: 1.0, 2: 2.0}, {1: 2.0, 2: 3.0}])
    for count in (8, 9):
        names = [str(index) for index in range(count)]
        panel = Panel(title="", y="", bands=dict.fromkeys(names, band))
        look = looks(names, {})
        assert len(set(look.values())) == count
        axes = draw_plot(Plot(name="", title="", caption="", x="", panels=[panel]), look).axes[0]
        assert (len(axes.lines), len(axes.collections)) == (count, count if count == 8 else 0)
