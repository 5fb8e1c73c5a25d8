"""The numbers of a report, in all that it writes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megaqk.studies.figures import draw_plot, looks
from megaqk.studies.series import Panel, Plot, deviation_band, log_band
from tests.unit.studies.made_study import make_study
from tests.unit.studies.report_page import Page, report

FIGURES = {
    "final-loss", "learning-curves", "loss-difference", "entropy", "write-energy", "timing", "pathwise", "logit-growth",
    "reliance", "write-energy-by-layer",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Page, str]:
    folder = make_study(tmp_path_factory.mktemp("study"))
    return folder, *report(folder)


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
