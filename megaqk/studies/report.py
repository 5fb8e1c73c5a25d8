"""`megaqk study report`: from the folder of a study to a page, a text, figures and a file of numbers."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.studies.document import Picture
from megaqk.studies.figures import draw_differences, draw_plot, looks, pdf, png
from megaqk.studies.html import to_html
from megaqk.studies.markdown import FIGURES, to_markdown
from megaqk.studies.numbers import Numbers, compute
from megaqk.studies.report_text import compose
from megaqk.studies.study_runs import StudyRuns, read_study


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html`, `report.md`, `report.json` and `figures/`.

    Args:
        folder: Of the study.
        output: Where to; None means `report` in that folder.

    Returns:
        Where it was written.

    Raises:
        UserError: The folder is none of a study, a file in it is damaged, or the report cannot be written.
    """
    study = read_study(folder)
    numbers = compute(study)
    pictures = _draw(study, numbers)
    words = ["megaqk", "study", "report", str(folder), *([] if output is None else ["--output", str(output)])]
    document = compose(study, numbers, pictures, shlex.join(words))
    output = folder / "report" if output is None else output
    with os_errors_named(output):
        (output / FIGURES).mkdir(parents=True, exist_ok=True)
    _write(output / "report.html", to_html(document).encode())
    _write(output / "report.md", to_markdown(document).encode())
    _write(output / "report.json", _json(study, numbers))
    for picture in document.pictures:
        _write(output / FIGURES / f"{picture.name}.png", picture.png)
        _write(output / FIGURES / f"{picture.name}.pdf", picture.pdf)
    return output


def _draw(study: StudyRuns, numbers: Numbers) -> dict[str, Picture]:
    look = looks(study.arms, {name: arms[0] for name, arms in study.contrasts.items()})
    pictures = {}
    for plot in numbers.plots:
        figure = draw_plot(plot, look)
        pictures[plot.name] = Picture(plot.name, plot.title, plot.caption, png(figure), pdf(figure))
    losses = numbers.differences.get("loss", {})
    if any(one.n for one in losses.values()):
        figure = draw_differences(losses, look)
        caption = (
            "Dots are seeds, diamonds means over them, thick lines 95 % t intervals and thin ones those that hold for "
            "all comparisons at once. Left of zero the first arm is better."
        )
        title = "Paired differences of the final validation loss"
        pictures["final-loss"] = Picture("final-loss", title, caption, png(figure), pdf(figure))
    return pictures


def _json(study: StudyRuns, numbers: Numbers) -> bytes:
    content: dict[str, Any] = {
        "name": study.name,
        "description": study.description,
        "size": study.size,
        "command": study.command,
        "complete": not study.incomplete,
        "seeds": study.seeds,
        "comparisons": study.comparisons,
        "interactions": study.interactions,
        "runs": [
            {
                "arm": run.arm,
                "seed": run.seed,
                "state": run.state,
                "step": run.step,
                "steps": run.steps,
                "loss": run.loss,
            }
            for run in study.runs
        ],
        "measures": {measure.key: measure.title for measure in numbers.measures},
    }
    content |= {name: value for name, value in asdict(numbers).items() if name != "measures"}
    return json.dumps(content, indent=1).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as beside:
        beside.write_bytes(content)
