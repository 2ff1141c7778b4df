"""Lists that look like tables: text on a terminal, HTML in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mms_sdk import html

_T = TypeVar("_T")


class Table(list[_T]):
    """A list of handles that shows itself as a table.

    Args:
        items: The handles.
        title: Above the table, and what is said to be missing when it is empty, e.g. `datasets`.
        rows: What is shown of each, in the same order.
    """

    def __init__(self, items: Iterable[_T], *, title: str, rows: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(items)
        self.title = title
        self.rows = [dict(row) for row in rows]

    def __repr__(self) -> str:
        return aligned(self.rows) if self.rows else f"no {self.title} yet"

    def _repr_html_(self) -> str:
        if not self.rows:
            return html.facts(f"no {self.title} yet", {})
        return html.table(self.title, list(self.rows[0]), [list(row.values()) for row in self.rows])


def aligned(rows: list[dict[str, Any]]) -> str:
    """Rows as text in columns; numbers to the right."""
    names = list(rows[0])
    cells = [[_on_one_line(str(row[name])) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(names)]
    right = [all(isinstance(row[name], int | float) for row in rows) for name in names]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _on_one_line(text: str) -> str:
    # A name of a person's file may hold line ends, and escape sequences that a terminal would obey.
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
