"""A report as Markdown, with its figures beside it."""

from megaqk.studies.document import Command, Document, Picture, Table

FIGURES = "figures"


def to_markdown(document: Document) -> str:
    """Write a text that looks for its figures in `figures/`."""
    blocks = [f"# {document.title}"]
    blocks += [f"> **{text}**" for text in document.warnings]
    blocks += document.lead
    for section in document.sections:
        blocks += [f"## {section.title}", *(_part(part) for part in section.parts)]
    return "\n\n".join(blocks) + "\n"


def _part(part: str | Table | Picture | Command) -> str:
    if isinstance(part, Table):
        return "\n".join([_row(part.head), _row(["---"] * len(part.head)), *(_row(row) for row in part.rows)])
    if isinstance(part, Picture):
        links = f"[PDF]({FIGURES}/{part.name}.pdf)"
        return f"![{part.title}]({FIGURES}/{part.name}.png)\n\n*{part.title}.* {part.caption} {links}"
    if isinstance(part, Command):
        return f"    {part.text}"
    return part


def _row(cells: list[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
