"""Rows of a snapshot as a predictor takes them, and what is known of them beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mms_sdk.compute.data.kinds.rows import kind_of
from mms_sdk.compute.data.kinds.tabular import label_of
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows


class StoredRows:
    """Rows of a snapshot for a predictor.

    Args:
        predictor: The model.
        snapshot: Where they lie: what it was trained on, or another with columns of the same names and kinds.
        ahead: Steps of a series that come along behind those that the model takes.

    Raises:
        ColumnNotFound: A column that the model sees is not there.
        InvalidRequest: One is there and of another kind.
    """

    def __init__(self, predictor: Predictor, snapshot: OpenSnapshot, *, ahead: int = 0) -> None:
        self._predictor = predictor
        self._ahead = ahead
        self._snapshot = snapshot
        self._columns = [snapshot.column(column.name) for column in predictor.columns]
        # Not the card's: categories may have other codes here, and recordings another rate.
        self._kind = kind_of(self._columns)
        if self._kind.name != predictor.kind.name:
            raise InvalidRequest(
                f"the model takes rows of kind {predictor.kind.name} from {[each.name for each in predictor.columns]}, "
                f"which in {snapshot.ref} are of kind {self._kind.name}; rename the columns, or train on these"
            )

    def prepared(self, rows: Rows) -> list[Array | InvalidInput]:
        """Each row as the device takes it, or why it cannot be."""
        stored = [self._snapshot.gather(column.name, rows) for column in self._columns]
        if self._kind.name == "table":
            return self._at_once(stored, len(rows))
        items = _present(stored[0])
        if self._kind.name == "image":  # of any size and colour: each is looked at by itself
            return [self._picture(item) for item in items]
        good = [item for item in items if not isinstance(item, InvalidInput)]
        made = iter(self._at_once([good], len(good)) if good else ())
        return [item if isinstance(item, InvalidInput) else next(made) for item in items]

    def _picture(self, item: Any) -> Array | InvalidInput:
        try:
            return item if isinstance(item, InvalidInput) else self._predictor.prepare(item)
        except InvalidInput as error:
            return error

    def _at_once(self, stored: Sequence[Any], rows: int) -> list[Array | InvalidInput]:
        try:
            return list(self._predictor.prepare_stored(self._kind, stored, ahead=self._ahead))
        except InvalidInput as error:
            if rows == 1:
                return [error]
        # One by one, to learn which of them cannot be.
        singles = ([column[row : row + 1] for column in stored] for row in range(rows))
        return [self._at_once(single, 1)[0] for single in singles]

    def sources(self, rows: Rows) -> list[str]:
        """Where each row came from, as far as that is known."""
        names = [column.name for column in self._snapshot.record.columns]
        if "row_source" in names:
            labels = self._snapshot.column("row_source").labels or ()
            return [label_of(labels, int(code)) for code in self._snapshot.values("row_source")[rows]]
        if "source" in names and self._snapshot.column("source").kind == "text":
            return [(source or b"").decode() for source in self._snapshot.gather("source", rows)]
        return [""] * len(rows)

    def labels(self, rows: Rows) -> list[str | None]:
        """The class of each row, where it is known."""
        target = self._predictor.card.target
        column = self._snapshot.record.column(target) if target else None
        if column is None or column.labels is None:
            return [None] * len(rows)
        codes = self._snapshot.values(column.name)[rows]
        known = zip(np.ma.getdata(codes), np.ma.getmaskarray(codes), strict=True)
        return [None if gone else label_of(column.labels, int(code)) for code, gone in known]


def _present(stored: Any) -> list[Any]:
    gone: Any = [row is None for row in stored]
    if isinstance(stored, np.ma.MaskedArray):
        gone = np.ma.getmaskarray(stored).reshape(len(stored), -1).any(axis=1)
    rows = zip(np.ma.getdata(stored) if isinstance(stored, np.ndarray) else stored, gone, strict=True)
    return [InvalidInput("the row has no value") if no else row for row, no in rows]
