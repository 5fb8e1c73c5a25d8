"""What a report consists of, whatever it is written as."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        head: Of the columns.
        rows: As wide as the head.
    """

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """A figure, drawn.

    Attributes:
        name: Of its files.
        title: Short, for whoever cannot see it.
        caption: Below it.
        png: For pages.
        pdf: For papers.
    """

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes


@dataclass(frozen=True)
class Command:
    """Words for a shell."""

    text: str


@dataclass(frozen=True)
class Section:
    """Paragraphs, tables and figures under a title."""

    title: str
    parts: list[str | Table | Picture | Command]


@dataclass(frozen=True)
class Document:
    """The report.

    Attributes:
        title: Of all.
        lead: Paragraphs above the first section.
        warnings: What a reader must know before any number.
        sections: In order.
    """

    title: str
    lead: list[str]
    warnings: list[str]
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All figures."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Picture)]
