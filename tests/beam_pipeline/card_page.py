"""What a browser would find in a data card: its tables, facts, pictures and references."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "br"}


@dataclass
class Table:
    """A table: its head, and rows by their first cells."""

    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)

    def column(self, name: str) -> dict[str, str]:
        """A column's cells, by the heading of their rows."""
        place = self.columns.index(name) - 1
        return {heading: cells[place] for heading, cells in self.rows.items()}


class Page(HTMLParser):
    """A page, parsed.

    Attributes:
        title: of its only h1.
        headings: all h3.
        tables: by caption.
        facts: of all definition lists.
        pictures: data: URIs by their alternative texts.
        charts: their titles.
        references: all that is loaded or linked, but data and places in the page.
        text: all text that is seen.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.title = ""
        self.headings: list[str] = []
        self.tables: dict[str, Table] = {}
        self.facts: dict[str, str] = {}
        self.pictures: dict[str, str] = {}
        self.charts: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._parts: list[str] = []
        self._cells: list[str] = []
        self._table = Table()
        self._term = ""
        self.feed(html)
        self.close()

    @classmethod
    def read(cls, path: Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in _VOID:
            self._open.append(tag)
        if tag in ("h1", "h3", "caption", "th", "td", "dt", "dd", "title"):
            self._parts = []
        if tag == "tr":
            self._cells = []
        if tag == "table":
            self._table = Table()
        if tag == "img":
            self.pictures[values["alt"] or ""] = values["src"] or ""
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = values.get(name) or ""
            if target and not target.startswith(("data:", "#")):
                self.references.append(target)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == "title" and "svg" in self._open:
            self.charts.append("".join(self._parts))
        text = " ".join("".join(self._parts).split())
        if tag == "h1":
            self.title = text
        elif tag == "h3":
            self.headings.append(text)
        elif tag == "caption":
            self.tables[text] = self._table
        elif tag in ("th", "td"):
            self._cells.append(text)
        elif tag == "tr" and self._table.columns:
            self._table.rows[self._cells[0]] = self._cells[1:]
        elif tag == "tr":
            self._table.columns = self._cells
        elif tag == "dt":
            self._term = text
        elif tag == "dd":
            self.facts.setdefault(self._term, text)

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self._parts.append(data)
            self.text += data
