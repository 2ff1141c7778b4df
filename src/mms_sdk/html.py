"""HTML of handles in notebooks. Every value is text; nothing a dataset or server says becomes markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain, cycle
from typing import Any

from mms_sdk import told

_COLORS = ("#4c8bf5", "#e8710a", "#188038", "#a142f4")  # seen on a light page and on a dark one
LONGEST_CELL = 500
_CELL = "text-align:left;vertical-align:top;padding:2px 16px 2px 0;max-width:40em"
_NUMBER = "text-align:right;vertical-align:top;padding:2px 16px 2px 0;font-variant-numeric:tabular-nums"
_SHORT, _LONG_WORD = 28, 40  # signs: shorter ones stay on a line, words that are longer are broken anywhere
_MIDDLE = "vertical-align:middle"
_TABLE = "margin:0;border-collapse:collapse;table-layout:auto"  # a notebook's own style would put it in the middle
_DIM = "color:var(--jp-ui-font-color2,inherit)"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return bool(shell and shell.get_ipython() and "ZMQ" in type(shell.get_ipython()).__name__)


def titled(title: str, *sections: str, level: int = 3) -> str:
    """A heading, and what belongs to it. Not `<h3>`: a notebook lists those in its table of contents."""
    heading = f'<div role="heading" aria-level="{level}" style="font-weight:600;margin:0 0 4px">{escape(title)}</div>'
    return f'<div style="margin:0 0 10px">{heading}{"".join(sections)}</div>'


def line(text: str) -> str:
    """A line of text."""
    return f'<div style="max-width:60em;margin:2px 0">{escape(text)}</div>'


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A title and a table of names and values."""
    return titled(title, pairs(values))


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:600;white-space:nowrap">{escape(str(name))}</th>'
        f"{_td(value, _CELL)}</tr>"
        for name, value in values.items()
    )
    return f'<table style="{_TABLE};margin-bottom:10px">{rows}</table>'


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, level: int = 3) -> str:
    """A title and a table with a header; numbers to the right. Cells that show themselves do so."""
    found = [list(row) for row in rows]
    styles = [_NUMBER if are_numbers([row[at] for row in found]) else _CELL for at in range(len(columns))]
    head = "".join(
        f'<th scope="col" style="{style};font-weight:600;white-space:nowrap">{escape(name)}</th>'
        for style, name in zip(styles, columns, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_td(value, style) for style, value in zip(styles, row, strict=True)) + "</tr>" for row in found
    )
    # What is wider than the page is scrolled by itself, also by key.
    return titled(
        title,
        f'<div role="region" tabindex="0" aria-label="{escape(title)}" style="overflow-x:auto">'
        f'<table style="{_TABLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        level=level,
    )


def bars(title: str, values: Iterable[tuple[str, float]]) -> str:
    """A title and one bar for each name; values in [0, 1]."""
    rows = "".join(
        f'<tr><td style="{_CELL}">{escape(name)}</td>'
        f'<td style="{_CELL}">'
        f'<div style="background:#4c8bf5;height:10px;width:{max(1, round(160 * value))}px"></div></td>'
        f'<td style="{_CELL};font-variant-numeric:tabular-nums">{value:.4f}</td></tr>'
        for name, value in values
    )
    return titled(title, f'<table style="{_TABLE}">{rows}</table>')


def stacked(title: str, counts: Mapping[str, Mapping[str, int]], *, note: str = "", level: int = 3) -> str:
    """A title, and for each name a bar of pieces, on a common scale.

    Args:
        title: Above them.
        counts: Of each name, of each piece how many. Pieces without a name are not told apart.
        note: Below them.
        level: Of the heading.
    """
    top = max((sum(pieces.values()) for pieces in counts.values()), default=0)
    colors = dict(zip(dict.fromkeys(chain.from_iterable(counts.values())), cycle(_COLORS), strict=False))
    rows = "".join(_stack(name, pieces, top, colors) for name, pieces in counts.items())
    legend = "".join(
        f'<span style="margin-right:14px"><span style="display:inline-block;width:10px;height:10px;margin-right:5px;'
        f'background:{color}"></span>{escape(piece)}</span>'
        for piece, color in colors.items()
        if piece and any(pieces.get(piece) for pieces in counts.values())
    )
    below = f'<div style="{_DIM}">{escape(note)}</div>' if note else ""
    return titled(title, f"<div>{legend}</div>", f'<table style="{_TABLE}">{rows}</table>{below}', level=level)


def _stack(name: str, pieces: Mapping[str, int], top: int, colors: Mapping[str, str]) -> str:
    total = sum(pieces.values())
    words = ", ".join(f"{piece} {count:,}".strip() for piece, count in pieces.items()) or "none"
    drawn = "".join(
        f'<span style="height:10px;width:{240 * count / top:.1f}px;background:{colors[piece]}"></span>'
        for piece, count in pieces.items()
        if count
    )
    return (
        f'<tr><th scope="row" title="{escape(name)}" style="{_CELL};{_MIDDLE};font-weight:400">'
        f'{escape(_cut(name, 60))}</th><td style="{_NUMBER};{_MIDDLE}">{total:,}</td>'
        f'<td style="{_CELL};{_MIDDLE};min-width:240px"><div role="img" aria-label="{escape(words)}" '
        f'title="{escape(words)}" style="display:flex">{drawn}</div></td></tr>'
    )


def grid(title: str, items: Iterable[tuple[Sequence[Any], str, Sequence[str]]]) -> str:
    """A title and a grid of figures: drawings that show themselves, a caption, and lines of detail."""
    cells = "".join(
        f'<figure style="margin:0;max-width:202px{"" if drawings else ";width:202px"}">{"".join(map(_shown, drawings))}'
        f'<figcaption style="overflow-wrap:anywhere">{escape(_cut(caption, 120))}'
        f"{''.join(map(_detail, details))}"
        f"</figcaption></figure>"
        for drawings, caption, details in items
    )
    return titled(title, f'<div style="display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start">{cells}</div>')


def _td(value: Any, style: str) -> str:
    text = "" if hasattr(type(value), "_repr_html_") else told.cell(value)
    if len(text) <= _SHORT:
        style += ";white-space:nowrap"
    elif max(map(len, text.split()), default=0) > _LONG_WORD:
        style += ";overflow-wrap:anywhere"
    return f'<td style="{style}">{_shown(value)}</td>'


def _detail(text: str) -> str:
    return f'<div style="{_DIM};font-size:.85em">{escape(text)}</div>'


def _shown(value: Any) -> str:
    if hasattr(type(value), "_repr_html_"):
        return str(value._repr_html_())
    return escape(_cut(told.cell(value), LONGEST_CELL))


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether a column of a table holds numbers, which stand to the right."""
    there = [value for value in values if value is not None]
    return bool(there) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def curves(title: str, series: Mapping[str, Sequence[float]], *, width: int = 360, height: int = 120) -> str:
    """A title and one line for each series of numbers, by epoch from 1, as a drawing with a common scale from 0."""
    top = max((value for values in series.values() for value in values if value == value), default=1.0) or 1.0
    lines, names = [], []
    drawn = {name: values for name, values in series.items() if values}
    for color, (name, values) in zip(_COLORS, drawn.items(), strict=False):
        step = width / max(1, len(values) - 1)
        points = " ".join(
            f"{at * step:.1f},{height - value / top * height:.1f}" for at, value in enumerate(values) if value == value
        )
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{points}"/>')
        names.append(f'<span style="color:{color};margin-right:12px">{escape(name)} {values[-1]:.4f}</span>')
    left, below = 44, 18  # room for the numbers on the axes
    box = f'viewBox="{-left} -8 {width + left + 10} {height + below + 8}" width="{width + left + 10}" role="img"'
    axes = f'<path d="M0 0V{height}H{width}" fill="none" stroke="#999"/>'
    ends = [
        (-6, 4, "end", f"{top:.3g}"),
        (-6, height, "end", "0"),
        (0, height + 14, "start", "1"),
        (width, height + 14, "end", str(max(map(len, drawn.values()), default=1))),
    ]
    numbers = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#888" font-size="11">{text}</text>'
        for x, y, anchor, text in ends
    )
    drawing = f'<svg {box} aria-label="{escape(title)}">{axes}{"".join(lines)}{numbers}</svg>'
    return titled(title, f"<div>{drawing}</div><div>{''.join(names)}</div>")
