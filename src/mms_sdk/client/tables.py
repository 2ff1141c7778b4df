"""Lists that look like tables: text on a terminal, HTML in a notebook."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mms_sdk import html, told
from mms_sdk.told import on_one_line

_T = TypeVar("_T")
_GAP = 2
_LEAST = 12  # cells of text are not made narrower than that


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
        return aligned(self.rows, width=terminal_width()) if self.rows else f"no {self.title} yet"

    def _repr_html_(self) -> str:
        if not self.rows:
            return html.facts(f"no {self.title} yet", {})
        return html.table(self.title, list(self.rows[0]), [list(row.values()) for row in self.rows])


def terminal_width() -> int | None:
    """How many signs fit on a line; None where what is printed goes into a file, a pipe or a notebook."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(rows: list[dict[str, Any]], *, width: int | None = None) -> str:
    """Rows as text in columns; numbers to the right.

    Args:
        rows: Alike in their names.
        width: What a line has room for; None for any. Texts are cut to fit, numbers and drawings are not, and columns
            for which there is no room are named below.
    """
    names = list(rows[0])
    cells = [[on_one_line(told.cell(row[name])) for name in names] for row in rows]
    right = [html.are_numbers([row[name] for row in rows]) for name in names]
    widths = [max(map(_cells, (name, *(line[at] for line in cells)))) for at, name in enumerate(names)]
    if width is not None:
        whole = [at for at, name in enumerate(names) if right[at] or not all(_is_text(row[name]) for row in rows)]
        widths = _fitted(widths, whole, width)
    lines = [
        (" " * _GAP).join(_put(cell, w, right=r) for cell, w, r in zip(line, widths, right, strict=False)).rstrip()
        for line in (names, *cells)
    ]
    if left_out := names[len(widths) :]:
        plural = "s" * (len(left_out) != 1)
        lines.append(_cut(f"and {len(left_out)} column{plural} more: {', '.join(left_out)}", width or 0))
    return "\n".join(lines)


def pairs(values: Mapping[str, Any], *, width: int | None = None) -> str:
    """Names and values, one a line; a long value goes on below itself."""
    told_of = [(on_one_line(str(name)), on_one_line(str(value))) for name, value in values.items()]
    widest = max((_cells(name) for name, _ in told_of), default=0)
    lines = []
    for name, value in told_of:
        room = None if width is None else max(_LEAST, width - widest - _GAP)
        first, *more = wrapped(value, room)
        lines += [f"{_put(name, widest)}{' ' * _GAP}{first}".rstrip()]
        lines += [" " * (widest + _GAP) + each for each in more]
    return "\n".join(lines)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _fitted(widths: list[int], whole: list[int], width: int) -> list[int]:
    least = [each if at in whole else min(each, _LEAST) for at, each in enumerate(widths)]
    least[0] = min(widths[0], max(least[0], width // 3))
    while len(least) > 1 and sum(least) + _GAP * (len(least) - 1) > width:
        least.pop()
    fitted = widths[: len(least)]
    spare = [at for at in range(len(least)) if fitted[at] > least[at]]
    while spare and sum(fitted) + _GAP * (len(fitted) - 1) > width:
        widest = max(spare, key=lambda at: (at > 0, fitted[at]))  # what rows are known by stands first, and is cut last
        fitted[widest] -= 1
        spare = [at for at in spare if fitted[at] > least[at]]
    return fitted


def wrapped(text: str, width: int | None) -> list[str]:
    """A text on lines of at most so many signs, broken at spaces; on one line for None."""
    if width is None or _cells(text) <= width:
        return [text]
    lines = [""]
    for word in _words(text, width):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _cells(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _words(text: str, width: int) -> Iterator[str]:
    from rich.cells import chop_cells

    for word in text.split(" "):
        yield from chop_cells(word, width) or [""]


def _put(text: str, width: int, *, right: bool = False) -> str:
    text = _cut(text, width)
    space = " " * (width - _cells(text))
    return space + text if right else text + space


def _cut(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return text if _cells(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def _cells(text: str) -> int:
    # Signs of East Asian scripts take two places of a terminal's line, accents none.
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)
