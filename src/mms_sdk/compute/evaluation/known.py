"""What rows of a dataset are, as a version's answers are compared with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mms_sdk.compute.data.kinds.tabular import label_of
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.model import ModelCard
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows


@dataclass(frozen=True, kw_only=True)
class Known:
    """Rows whose answer is known.

    Attributes:
        rows: Row numbers, ascending.
        targets: Codes of classes (rows,); which classes each is of, bool (rows, classes); numbers (rows, numbers); or
            names of classes (rows,), where a version has none.
        without: Rows without a target.
        unknown: Rows of classes that the version does not know, by class.
    """

    rows: Rows
    targets: Array
    without: int = 0
    unknown: dict[str, int] = field(default_factory=dict)


def known_rows(card: ModelCard, snapshot: OpenSnapshot, rows: Rows, labels: Sequence[str]) -> Known:
    """The rows of a snapshot that a version's answers can be compared with.

    Args:
        card: The version's.
        snapshot: Where the rows are.
        rows: Row numbers, ascending.
        labels: Names of the version's classes, in the order of codes that is wanted.

    Raises:
        InvalidRequest: The target is no such column.
        ColumnNotFound: There is no target.
        DataError: There are no rows to compare with.
    """
    column = snapshot.column(str(card.target))
    reading = {"classification": _classes, "multi-label": _labels, "regression": _numbers}[card.task]
    return _some(reading(column, snapshot, rows, labels), column, rows)


def known_classes(target: str, snapshot: OpenSnapshot, rows: Rows) -> Known:
    """Rows with a class, of whatever name.

    Args:
        target: The column with the class.
        snapshot: Where the rows are.
        rows: Row numbers, ascending.

    Raises:
        InvalidRequest, ColumnNotFound, DataError: See `known_rows`.
    """
    column = snapshot.column(target)
    if column.labels is None or column.shape != ():
        raise InvalidRequest(_other_target(column, snapshot, "one class a row"))
    present, codes = _present(snapshot, column, rows)
    found, which = np.unique(codes, return_inverse=True)
    names = np.asarray([label_of(column.labels, int(code)) for code in found], np.str_)
    return _some(Known(rows=present, targets=names[which.reshape(-1)], without=len(rows) - len(present)), column, rows)


def every_row(snapshot: OpenSnapshot, rows: Rows) -> Known:
    """Rows that say themselves what is so.

    Raises:
        DataError: There are none.
    """
    if not len(rows):
        raise DataError(f"an evaluation measures rows; {snapshot.ref} has none of those; name another split or dataset")
    return Known(rows=rows, targets=np.zeros(len(rows), np.int64))


def _some(known: Known, column: Column, rows: Rows) -> Known:
    if not len(known.rows):
        foreign = sum(known.unknown.values())
        unknown = f", {foreign:,} are of classes that the version does not know" if foreign else ""
        raise DataError(
            f"an evaluation compares with rows whose {column.name!r} is known; of {len(rows):,} rows {known.without:,} "
            f"have none{unknown}; name another split or dataset"
        )
    return known


def _present(snapshot: OpenSnapshot, column: Column, rows: Rows) -> tuple[Rows, Array]:
    values = snapshot.gather(column.name, rows)
    there = ~_flat(np.ma.getmaskarray(values)).any(1)
    return rows[there], np.ma.getdata(values)[there]


def _flat(values: Array) -> Array:
    # Said in full: of no rows NumPy cannot tell how many values each has.
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _classes(column: Column, snapshot: OpenSnapshot, rows: Rows, labels: Sequence[str]) -> Known:
    if column.labels is None or column.shape != ():
        raise InvalidRequest(_other_target(column, snapshot, "one class a row"))
    present, codes = _present(snapshot, column, rows)
    place = {label: at for at, label in enumerate(labels)}
    found, which, counts = np.unique(codes, return_inverse=True, return_counts=True)
    names = [label_of(column.labels, int(code)) for code in found]
    targets = np.asarray([place.get(name, -1) for name in names], np.int64)[which.reshape(-1)]
    unknown = {name: int(count) for name, count in zip(names, counts, strict=True) if name not in place}
    known = targets >= 0
    return Known(rows=present[known], targets=targets[known], without=len(rows) - len(present), unknown=unknown)


def _labels(column: Column, snapshot: OpenSnapshot, rows: Rows, labels: Sequence[str]) -> Known:
    if column.varies or len(column.fixed) != 1:
        raise InvalidRequest(_other_target(column, snapshot, "one 0 or 1 for each class"))
    names = column.labels or tuple(map(str, range(column.fixed[0])))
    if missing := [label for label in labels if label not in names]:
        raise InvalidRequest(
            f"the version tells of the classes {missing}, which {column.name!r} of {snapshot.ref} has no place for; it "
            f"has {list(names)}; evaluate on data with those classes"
        )
    present, values = _present(snapshot, column, rows)
    if odd := np.setdiff1d(values, [0, 1]).tolist():
        raise InvalidRequest(f"{_other_target(column, snapshot, 'one 0 or 1 for each class')}; it holds {odd[:5]}")
    totals = dict(zip(names, values.sum(0, dtype=np.int64).tolist(), strict=True))
    return Known(
        rows=present,
        targets=values[:, [names.index(label) for label in labels]].astype(bool),
        without=len(rows) - len(present),
        unknown={name: count for name, count in totals.items() if name not in labels and count},
    )


def _numbers(column: Column, snapshot: OpenSnapshot, rows: Rows, labels: Sequence[str]) -> Known:
    if column.varies or column.labels is not None or column.kind in ("id", "text"):
        raise InvalidRequest(_other_target(column, snapshot, "a number a row"))
    present, values = _present(snapshot, column, rows)
    numbers = _flat(values).astype(np.float64)
    finite = np.isfinite(numbers).all(1)
    return Known(rows=present[finite], targets=numbers[finite], without=len(rows) - int(finite.sum()))


def _other_target(column: Column, snapshot: OpenSnapshot, wanted: str) -> str:
    return (
        f"the version's target {column.name!r} is {wanted}; in {snapshot.ref} it is of kind {column.kind}, "
        f"{column.form}; rename the columns, or evaluate on other data"
    )
