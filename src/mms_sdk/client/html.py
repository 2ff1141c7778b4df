"""HTML of handles in notebooks. Every value is text; nothing a dataset or server says becomes markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_CELL = "text-align:left;padding:2px 12px 2px 0"


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A title and a table of names and values."""
    rows = "".join(
        f'<tr><th style="{_CELL};font-weight:600">{escape(str(name))}</th><td style="{_CELL}">{escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A title and a table with a header."""
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(str(value))}</td>' for value in row) + "</tr>" for row in rows
    )
    return f"<div><b>{escape(title)}</b><table><tr>{head}</tr>{body}</table></div>"


def bars(title: str, values: Iterable[tuple[str, float]]) -> str:
    """A title and one bar for each name; values in [0, 1]."""
    rows = "".join(
        f'<tr><td style="{_CELL}">{escape(name)}</td>'
        f'<td style="{_CELL}"><div style="background:#4c8bf5;height:10px;width:{max(1, round(160 * value))}px"></div></td>'
        f'<td style="{_CELL};font-variant-numeric:tabular-nums">{value:.4f}</td></tr>'
        for name, value in values
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"
