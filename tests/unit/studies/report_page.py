"""A report as a test reads it, and what damages the files it is made from."""

import json
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from megaqk import cli
from megaqk.studies.html import to_html
from megaqk.studies.markdown import to_markdown
from megaqk.studies.numbers import compute
from megaqk.studies.report_text import compose
from megaqk.studies.study_runs import read_study


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


def words_of(folder: Path) -> tuple[dict[str, Any], Page, str]:
    """As `report`, without figures, which take most of its time."""
    study = read_study(folder)
    numbers = compute(study)
    document = compose(study, numbers, {}, "")
    plain = json.loads(json.dumps({**asdict(numbers), "interactions": study.interactions}, default=str))
    return plain, Page(to_html(document)), to_markdown(document)


def change_yaml(path: Path, changes: dict[str, Any]) -> None:
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def change_analysis(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    analysis = json.loads((path / "analysis.json").read_text())
    change(analysis)
    (path / "analysis.json").write_text(json.dumps(analysis))
