"""Concatenating: the rows of several datasets end to end, with columns that hold the values of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mms_sdk.compute.data.bring import Tell, tried
from mms_sdk.compute.data.combined import COUNTED, commit_combined, missing_values
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Column, Snapshot
from mms_sdk.schema.specs import ConcatSpec
from mms_sdk.storage import edits
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array

_WIDER = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32")
_DTYPES = (*_WIDER, "float64")  # in the order in which they are tried
_AS_IN_ALL = ("kind", "shape", "color", "rate_hz", "unit")


def concat(dataset: Dataset, those: Sequence[OpenSnapshot], spec: ConcatSpec, *, job: str, tell: Tell) -> Snapshot:
    """Commits the rows of several snapshots, in their order.

    Columns go by name. Numbers get the narrowest type that holds all values exactly, and codes those of the labels of
    all, put together by name. Each row keeps its split.

    Args:
        dataset: Where to: a new one, or one that was made so before, which gets a snapshot with the new rows.
        those: The snapshots.
        spec: How.
        job: Whose work it is; kept with the snapshot.
        tell: Called with the progress.

    Raises:
        InvalidRequest: A column is not in all of them, or does not hold the same in all.
        DataError: There is no row; or a code that has no label.
    """
    columns = aligned(those, missing=spec.missing)
    rows = sum(of.rows for of in those)
    if not rows:
        raise DataError(f"a dataset begins with at least one row; {', '.join(of.ref for of in those)} have none")
    made = spec.model_copy(update={"datasets": tuple(of.ref for of in those)})
    return tried(
        lambda: commit_combined(
            dataset,
            columns,
            (batch for of in those for batch in _taken(of, columns)),
            rows=rows,
            message=spec.message or f"{', '.join(made.datasets)} end to end",
            provenance={"job": job, "concat": made.model_dump(mode="json")},
            tell=tell,
        )
    )


def aligned(those: Sequence[OpenSnapshot], *, missing: str) -> list[Column]:
    """The columns that hold the rows of all snapshots, in the order in which they are first named.

    Raises:
        InvalidRequest: There are none.
    """
    names = dict.fromkeys(column.name for of in those for column in of.record.columns)
    columns = []
    for name in names:
        without = [of.ref for of in those if of.record.column(name) is None]
        if without and (missing == "refuse" or name in COUNTED):
            way = "" if name in COUNTED else ", or leave its values missing with missing='null'"
            raise InvalidRequest(
                f"a column is in all datasets that are put end to end; {name!r} is not in {', '.join(without)}; drop "
                f"or rename it{way}"
            )
        columns.append(_holding_all(name, those, nullable=bool(without)))
    return columns


def _holding_all(name: str, those: Sequence[OpenSnapshot], *, nullable: bool) -> Column:
    found = {of.ref: column for of in those if (column := of.record.column(name)) is not None}
    first = next(iter(found.values()))
    for ref, column in found.items():
        differing = [what for what in _AS_IN_ALL if getattr(column, what) != getattr(first, what)]
        if differing or (column.labels is None) != (first.labels is None):
            raise InvalidRequest(
                f"a column holds the same in all datasets that are put end to end; {name!r} is {_told(first)} in "
                f"{next(iter(found))} and {_told(column)} in {ref}; convert one, or rename it"
            )
    labels = dict.fromkeys(label for column in found.values() for label in column.labels or ())
    return first.model_copy(
        update={
            "array": None,
            "dtype": _widest(name, {ref: column.dtype for ref, column in found.items()}, most=max(0, len(labels) - 1)),
            "nullable": nullable or any(column.nullable for column in found.values()),
            "labels": None if first.labels is None else tuple(labels),
        }
    )


def _told(column: Column) -> str:
    beside = [f"{what} {value}" for what in ("color", "rate_hz", "unit") if (value := getattr(column, what))]
    return ", ".join([f"{column.kind} {column.dtype} of shape {column.shape}", *beside])


def _widest(name: str, dtypes: dict[str, str], *, most: int = 0) -> str:
    # `most` is the greatest code, where values are codes: more labels may come together than one column had.
    for wider in _DTYPES:
        fits = bool(np.asarray(most).astype(wider) == most)
        if fits and all(_holds(wider, dtype) for dtype in dtypes.values()):
            return wider
    raise InvalidRequest(
        f"numbers are put together in a type that holds all of them exactly; column {name!r} is "
        f"{', '.join(f'{dtype} in {ref}' for ref, dtype in dtypes.items())}; convert one with "
        f"dataset.clean(mms.convert({name!r}, ...))"
    )


def _holds(wider: str, dtype: str) -> bool:
    to, of = np.dtype(wider), np.dtype(dtype)
    if to == of:
        return True
    if "b" in (to.kind, of.kind):  # a truth value is no number
        return False
    if to.kind == "f" and of.kind in "iu":  # every whole number up to that many bits is a float
        bits = np.iinfo(of).bits - (of.kind == "i")
        return bits <= np.finfo(to).nmant + 1
    return np.can_cast(of, to, "safe")


def _taken(of: OpenSnapshot, columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    for start, end in edits.batches(columns, of.rows):
        rows = np.arange(start, end)
        yield {
            column.name: missing_values(column, len(rows))
            if (before := of.record.column(column.name)) is None
            else _as(column, before, of.take(column.name, rows))
            for column in columns
        }


def _as(column: Column, before: Column, values: Any) -> Any:
    if column.varies:
        if column.dtype == before.dtype:
            return values
        return [None if value is None else value.astype(column.dtype) for value in values]
    if column.labels is not None and column.labels != before.labels:
        return _recoded(column, before, values)
    return values.astype(column.dtype, copy=False)


def _recoded(column: Column, before: Column, values: Array) -> Array:
    missing = np.ma.getmaskarray(values)
    codes = np.where(missing, 0, np.ma.getdata(values)).astype(np.int64)
    labels = before.labels or ()
    if (wrong := codes[~missing & ((codes < 0) | (codes >= len(labels)))]).size:
        raise DataError(
            f"codes of column {column.name!r} are 0 to {len(labels) - 1}; got {wrong[0]}; write the column anew"
        )
    places = {label: code for code, label in enumerate(column.labels or ())}
    new = np.array([*(places[label] for label in labels), 0], column.dtype)[np.where(missing, len(labels), codes)]
    return np.ma.MaskedArray(new, missing) if missing.any() else new
