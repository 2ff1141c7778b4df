"""HTML of handles in notebooks. Every value is text; nothing a dataset or server says becomes markup."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_CELL = "text-align:left;padding:2px 12px 2px 0"


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A title and a table of names and values."""
    rows = "".join(
        f'<tr><th style="{_CELL};font-weight:600;white-space:nowrap">{escape(str(name))}</th>'
        f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
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
        f'<td style="{_CELL}">'
        f'<div style="background:#4c8bf5;height:10px;width:{max(1, round(160 * value))}px"></div></td>'
        f'<td style="{_CELL};font-variant-numeric:tabular-nums">{value:.4f}</td></tr>'
        for name, value in values
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


def pictures(title: str, items: Iterable[tuple[bytes, str]], *, pixels: int = 64) -> str:
    """A title and a grid of PNG pictures with captions, drawn with hard pixels."""
    cells = "".join(
        f'<figure style="margin:0;text-align:center"><img alt="{escape(caption)}" width="{pixels}" '
        f'style="image-rendering:pixelated" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for png, caption in items
    )
    return f'<div><b>{escape(title)}</b><div style="display:flex;flex-wrap:wrap;gap:10px">{cells}</div></div>'


def curves(title: str, series: Mapping[str, Sequence[float]], *, width: int = 360, height: int = 120) -> str:
    """A title and one line for each series of numbers, by epoch from 1, as a drawing with a common scale from 0."""
    top = max((value for values in series.values() for value in values if value == value), default=1.0) or 1.0
    colors = ("#4c8bf5", "#e8710a", "#188038", "#a142f4")
    lines, names = [], []
    drawn = {name: values for name, values in series.items() if values}
    for color, (name, values) in zip(colors, drawn.items(), strict=False):
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
    return f"<div><b>{escape(title)}</b><div>{drawing}</div><div>{''.join(names)}</div></div>"
