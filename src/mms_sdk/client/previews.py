"""Rows of a dataset to look at, in a notebook or on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mms_sdk import html, told
from mms_sdk.client.tables import aligned, terminal_width
from mms_sdk.compute.data import preview as looking
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Rows


class Preview:
    """Some rows of a dataset, to look at. Pictures and sounds are re-encoded: only pixels and samples come along.

    Args:
        opened: The snapshot.
        rows: Row numbers.
        captions: What is written below each; None for its class.
    """

    def __init__(self, opened: OpenSnapshot, rows: Rows, captions: Sequence[str] | None = None) -> None:
        self._ref = opened.ref
        self._rows = [int(row) for row in rows]
        columns = [column for column in opened.record.columns if column.kind not in ("id", "split")]
        self._given = None if captions is None else list(captions)
        label = opened.record.column("label")
        if self._given is not None:
            self._captions = self._given
        elif label is not None:
            self._captions = [told.cell(name) for name in looking.looks(label, opened.gather("label", rows))]
        else:
            self._captions = [f"row {row}" for row in self._rows]
        # A class is the caption, and a file is known by the number of its row.
        self._left_out = {"row_source", *(["source"] if opened.record.column("id") else [])}
        self._left_out |= {"label"} if self._given is None else set()
        self._looks = {
            column.name: looking.looks(column, opened.gather(column.name, rows), caption=self._captions.__getitem__)
            for column in columns
        }

    def __repr__(self) -> str:
        rows = self._table()
        return "\n".join([self._title, *([aligned(rows, width=terminal_width())] if rows else [])])

    def _repr_html_(self) -> str:
        if not any(isinstance(look, looking.Look) for looks in self._looks.values() for look in looks):
            rows = self._table()
            return html.table(self._title, list(rows[0]) if rows else [], [list(row.values()) for row in rows])
        return html.grid(self._title, map(self._figure, range(len(self._rows))))

    @property
    def _title(self) -> str:
        return f"{told.counted(len(self._rows), 'row')} of {self._ref}"

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "row": row,
                **({"caption": self._given[at]} if self._given else {}),
                **{name: looks[at] for name, looks in self._looks.items()},
            }
            for at, row in enumerate(self._rows)
        ]

    def _figure(self, at: int) -> tuple[list[looking.Look], str, list[str]]:
        shown = {name: looks[at] for name, looks in self._looks.items() if name not in self._left_out}
        drawn = {name: look for name, look in shown.items() if isinstance(look, looking.Look)}
        said = [f"{name}: {look}" if len(drawn) > 1 else str(look) for name, look in drawn.items() if look.told]
        number = f"row {self._rows[at]}"
        words = [f"{name}: {told.cell(look)}" for name, look in shown.items() if not isinstance(look, looking.Look)]
        short = [word if len(word) <= _DETAIL_SIGNS else f"{word[: _DETAIL_SIGNS - 1]}…" for word in words[:_DETAILS]]
        rest = [f"and {told.counted(len(words) - _DETAILS, 'column')} more"] if len(words) > _DETAILS else []
        caption = self._captions[at]
        return list(drawn.values()), caption, [*([number] if caption != number else []), *said, *short, *rest]


_DETAILS, _DETAIL_SIGNS = 6, 90  # lines below a drawing, and how long they are
