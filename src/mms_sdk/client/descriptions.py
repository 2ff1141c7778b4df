"""Columns in numbers, as tables by what they hold: numbers and lengths, names, times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mms_sdk import html
from mms_sdk.client.tables import Table, aligned, terminal_width
from mms_sdk.schema.statistics import ColumnStatistics


class Description(Table[ColumnStatistics]):
    """What `dataset.describe()` found: statistics of each column, which show themselves as tables.

    Args:
        found: Of each column.
        title: Whose columns they are.
    """

    def __init__(self, found: Iterable[ColumnStatistics], *, title: str) -> None:
        columns = list(found)
        super().__init__(columns, title=title, rows=(column.model_dump() for column in columns))
        times = [each for each in columns if isinstance(each.min, str)]
        numbers = [each for each in columns if each not in times and (each.histogram or each.not_finite)]
        names = [each for each in columns if each.distinct is not None]
        rest = [each for each in columns if each not in (*times, *numbers, *names)]
        by_kind = {
            "numbers": list(map(_numbers, numbers)),
            "names": list(map(_names, names)),
            "times": list(map(_times, times)),
            "not measured": list(map(_basics, rest)),
        }
        self._tables = {name: _without_blanks(rows) for name, rows in by_kind.items() if rows}

    def __repr__(self) -> str:
        width = terminal_width()
        return "\n\n".join(aligned(rows, width=width) for rows in self._tables.values()) or f"no {self.title}"

    def _repr_html_(self) -> str:
        tables = [
            html.table(name, list(rows[0]), [list(row.values()) for row in rows], level=4)
            for name, rows in self._tables.items()
        ]
        return html.titled(self.title, *tables)


def _basics(found: ColumnStatistics) -> dict[str, Any]:
    return {"column": found.column, "rows": found.count, "missing": found.missing}


def _numbers(found: ColumnStatistics) -> dict[str, Any]:
    return {
        **_basics(found),
        "not finite": found.not_finite,
        "min": found.min,
        "mean": found.mean,
        "max": found.max,
        "std": found.std,
        "histogram": found.histogram,
        "of": found.measured or "values",
    }


def _names(found: ColumnStatistics) -> dict[str, Any]:
    return {**_basics(found), "different": found.distinct, "rows of": found.top_count, "the commonest": found.top}


def _times(found: ColumnStatistics) -> dict[str, Any]:
    return {**_basics(found), "first": found.min, "last": found.max, "histogram": found.histogram}


def _without_blanks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = {name for row in rows for name, value in row.items() if value or name not in ("missing", "not finite")}
    return [{name: value for name, value in row.items() if name in said} for row in rows]
