"""A report as one page that needs nothing beside it."""

import base64
from html import escape

from megaqk.studies.document import Command, Document, Picture, Section, Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.warning { background: #fff3cd; border-left: 4px solid #D55E00; padding: .5rem 1rem; margin: 1rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #888; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .875rem; color: #444; }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto; }
""".strip()


def to_html(document: Document) -> str:
    """Write a page with its style and figures inside; it asks no network."""
    title = escape(document.title)
    body = [
        f"<h1>{title}</h1>",
        *(f'<p class="warning">{escape(text)}</p>' for text in document.warnings),
        *(f"<p>{escape(text)}</p>" for text in document.lead),
        *(_section(section) for section in document.sections),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>',
            f"<style>\n{_STYLE}\n</style></head>",
            "<body>",
            *body,
            "</body>",
            "</html>\n",
        ]
    )


def _section(section: Section) -> str:
    return "\n".join([f"<h2>{escape(section.title)}</h2>", *(_part(part) for part in section.parts)])


def _part(part: str | Table | Picture | Command) -> str:
    if isinstance(part, Table):
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in part.head)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in part.rows)
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    if isinstance(part, Picture):
        image = base64.b64encode(part.png).decode()
        return (
            f'<figure id="{escape(part.name)}"><img alt="{escape(part.title)}" src="data:image/png;base64,{image}">\n'
            f"<figcaption><strong>{escape(part.title)}.</strong> {escape(part.caption)}</figcaption></figure>"
        )
    if isinstance(part, Command):
        return f"<pre>{escape(part.text)}</pre>"
    return f"<p>{escape(part)}</p>"
