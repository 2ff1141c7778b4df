"""Rows told apart by the value of a column."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from mms_sdk import told
from mms_sdk.compute.data.kinds.tabular import label_of
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

LARGEST = 50  # slices of a column that are told; of more, those of the most rows
_FEW = 10  # whole numbers of so many values are told apart by value
_PARTS = 4
NONE = "no value"
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class Some(NamedTuple):
    """Rows that have something in common: in words, and their places among the rows asked for."""

    value: str
    places: Array


def slices_of(snapshot: OpenSnapshot, name: str, rows: Rows) -> list[Some]:
    """Rows by the value of a column: by class or category, or of numbers by value or by quarters.

    Args:
        snapshot: Where the column is.
        name: The column.
        rows: Row numbers.

    Raises:
        ColumnNotFound: There is no such column.
        InvalidRequest: It has no value that rows could have in common.
    """
    column = snapshot.column(name)
    by_label = column.labels is not None and column.kind in ("label", "category", "split")
    if column.shape != () or not (by_label or column.kind in ("number", "timestamp")):
        raise InvalidRequest(
            f"rows are told apart by a class, a category, a number or a time, one value a row; {name!r} of "
            f"{snapshot.ref} is of kind {column.kind}, {column.form}; name another column"
        )
    values = snapshot.values(name)[rows]
    there = ~np.ma.getmaskarray(values)
    plain = np.ma.getdata(values)
    if plain.dtype.kind == "f":
        there &= ~np.isnan(plain)
    known = np.flatnonzero(there)
    found = [*(_by_label if by_label else _by_number)(column, plain[known], known)]
    if len(known) < len(rows):
        found.append(Some(NONE, np.flatnonzero(~there)))
    return found


def _by_label(column: Column, codes: Array, places: Array) -> Iterator[Some]:
    for code in np.unique(codes):
        yield Some(label_of(column.labels or (), int(code)), places[codes == code])


def _by_number(column: Column, values: Array, places: Array) -> Iterator[Some]:
    distinct = np.unique(values)
    if values.dtype.kind in "bui" and len(distinct) <= _FEW:
        for value in distinct:
            yield Some(_told(column, value), places[values == value])
        return
    if not len(values):
        return
    # Of values that are there, so that integers of 64 bits stay what they are.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _PARTS + 1), method="lower"))
    part = np.clip(np.searchsorted(edges, values, side="left"), 1, max(1, len(edges) - 1))
    for at in np.unique(part):
        low, high = edges[at - 1], edges[min(at, len(edges) - 1)]
        sign = "≤" if at == 1 else "<"
        yield Some(f"{_told(column, low)} {sign} {column.name} ≤ {_told(column, high)}", places[part == at])


def _told(column: Column, value: Any) -> str:
    if column.kind == "timestamp":
        seconds = int(value) // _PER_SECOND.get(column.unit or "s", 1)
        try:
            return datetime.fromtimestamp(seconds, UTC).isoformat()
        except (ValueError, OverflowError, OSError):  # further away than years have four digits
            return str(int(value))
    if value.dtype.kind == "b":
        return str(bool(value))
    return told.number(value.item())
