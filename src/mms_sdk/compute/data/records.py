"""Records of a stream as rows: each value looked at by itself, since the next record may be of another mind."""

from __future__ import annotations

import datetime as dt
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mms_sdk.compute.data.clean_table import ID
from mms_sdk.compute.data.kinds import tabular
from mms_sdk.compute.data.sources.rows import ROW, SOURCE
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column

Take = Callable[[Any], Any]
"""From a value of a record to what Arrow takes for it; ValueError tells what it should have been."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


class Misfit(Exception):
    """A record does not fit the columns; the message says why."""


class Rows:
    """Takes records, value by value, for the columns that a dataset keeps of them.

    Args:
        columns: Those.
        max_bytes: What a row may weigh.

    Raises:
        InvalidRequest: A column that no value of a record can be in.
    """

    def __init__(self, columns: Sequence[Column], *, max_bytes: int) -> None:
        self._columns = columns
        self._max_bytes = max_bytes
        self._takes = [_taker(column) for column in columns]

    def take(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], int]:
        """A record's values in the order of the columns, None where there is none, and what they weigh in bytes.

        Raises:
            Misfit: One does not fit its column, or all are too large.
        """
        row = tuple(
            self._value(column, take, values.get(column.name))
            for column, take in zip(self._columns, self._takes, strict=True)
        )
        weight = sum(map(_weight, row))
        if weight > self._max_bytes:
            raise Misfit(f"a record weighs at most as much as a batch, {self._max_bytes:,} bytes; got {weight:,}")
        return row, weight

    def as_arrow(self, rows: Sequence[tuple[Any, ...]], names: Sequence[str], *, stream: str) -> pa.RecordBatch:
        """Rows as the cleaning of tables takes them.

        Args:
            rows: They.
            names: What each is found by.
            stream: Where they came from.
        """
        values = list(zip(*rows, strict=True)) if rows else [()] * len(self._columns)
        arrays = [pa.array(each, _arrow_type(column)) for column, each in zip(self._columns, values, strict=True)]
        own = pa.RecordBatch.from_arrays(arrays, names=[column.name for column in self._columns])
        ids = pa.array([each.tobytes() for each in tabular.digests(own, own.schema.names)], pa.binary(16))
        told = [pa.array([stream] * len(rows), pa.string()), pa.array(names, pa.string()), ids]
        return pa.RecordBatch.from_arrays([*arrays, *told], names=[*own.schema.names, SOURCE, ROW, ID])

    @staticmethod
    def _value(column: Column, take: Take, value: Any) -> Any:
        if value is None:
            return None
        try:
            return take(value)
        except ValueError as error:
            raise Misfit(f"column {column.name!r} takes {error}; got {shown(value)}") from error


def shown(value: Any) -> str:
    """A value in a message, however large it is."""
    try:
        return _SHOWN.repr(value)[:120]
    except ValueError:  # Python spells no whole number of more than 4,300 digits
        return f"a huge {type(value).__name__}"


def _weight(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str | bytes) else 8


def _taker(column: Column) -> Take:
    if column.kind in ("id", "split"):
        raise InvalidRequest(f"columns of kind {column.kind} are made by MMS; leave {column.name!r} out of columns=")
    if column.labels is not None or column.kind in ("label", "category"):
        return _one_of(column)
    if column.kind == "timestamp":
        return _time(column)
    if column.shape is None:
        return _text if column.kind == "text" else _bytes
    if column.kind == "text":
        raise InvalidRequest(f"texts are of any length; column {column.name!r} has the shape {column.shape}; give None")
    if column.shape:
        return _array(column)
    return {"b": _truth, "i": _whole, "u": _whole, "f": _number}[np.dtype(column.dtype).kind](column)


def _one_of(column: Column) -> Take:
    labels = frozenset(column.labels or ())
    if not labels:
        raise InvalidRequest(
            f"a stream's classes are known before it is read; column {column.name!r} of kind {column.kind} has none; "
            f"give labels=, which may grow at their end another time"
        )
    dtype = np.dtype(column.dtype)
    if column.shape != () or dtype.kind not in "iu" or len(labels) - 1 > np.iinfo(dtype).max:
        raise InvalidRequest(
            f"a class is one whole number; column {column.name!r} has {dtype} of shape {column.shape} for "
            f"{len(labels):,} labels; use int32"
        )

    def take(value: Any) -> str:
        if not isinstance(value, str) or value not in labels:
            raise ValueError(f"one of {shown(column.labels)}")
        return value

    return take


def _time(column: Column) -> Take:
    per_second = _PER_SECOND.get(column.unit or "")
    if per_second is None or column.shape != () or column.dtype != "int64":
        raise InvalidRequest(
            f"a timestamp is an int64 and has the unit s, ms, us or ns; column {column.name!r} has {column.dtype}, "
            f"{column.shape}, {column.unit!r}; give unit="
        )

    def take(value: Any) -> int:
        told = f"a time as ISO 8601 or as whole {column.unit} since 1970"
        if isinstance(value, str):
            try:
                value = dt.datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError(told) from error
        if isinstance(value, dt.datetime):
            moment = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
            count, rest = divmod((moment - _EPOCH) // dt.timedelta(microseconds=1) * per_second, 10**6)
            if rest:
                raise ValueError(f"{told}, no finer")
        else:
            count = _integer(value, told)
        if not -(2**63) < count < 2**63:
            raise ValueError(f"{told}, in 64 bits")
        return count

    return take


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("texts")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("texts of whole characters") from error
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError("bytes")
    return bytes(value)


def _truth(_: Column) -> Take:
    def take(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ValueError("truth values")
        return bool(value)

    return take


def _whole(column: Column) -> Take:
    info = np.iinfo(column.dtype)
    told = f"whole numbers from {info.min} to {info.max}"

    def take(value: Any) -> int:
        number = _integer(value, told)
        if not info.min <= number <= info.max:
            raise ValueError(told)
        return number

    return take


def _integer(value: Any, told: str) -> int:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(told)
    return int(value)


def _number(column: Column) -> Take:
    greatest = float(np.finfo(column.dtype).max)

    def take(value: Any) -> Any:
        if isinstance(value, np.integer | np.floating):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("numbers")
        if abs(value) > greatest and (isinstance(value, int) or not math.isinf(value)):
            raise ValueError(f"numbers, in {column.dtype} up to {greatest:g}")
        return float(value)

    return take


def _array(column: Column) -> Take:
    shape, dtype = column.shape or (), np.dtype(column.dtype)
    if (column.varies and column.fixed) or 0 in column.fixed:
        raise InvalidRequest(
            f"a stream brings arrays of one shape, or lists of any length; column {column.name!r} has {shape}; bring "
            f"the bytes of a file, or ingest files"
        )
    told = f"{dtype} arrays of shape {shape}" if column.fixed else f"lists of {dtype}"

    def take(value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping):
            raise ValueError(told)
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(told) from error
        if array.dtype.kind not in ("b" if dtype.kind == "b" else "iuf") and array.size:
            raise ValueError(told)
        if array.shape != shape if column.fixed else array.ndim != 1:
            raise ValueError(told)
        with np.errstate(all="ignore"):
            cast = array.astype(dtype)
        if dtype.kind == "f":
            kept = np.array_equal(np.isfinite(cast), np.isfinite(array))
        else:
            kept = np.array_equal(cast, array)
        if not kept:
            raise ValueError(f"{told}, unaltered")
        return cast.ravel()

    return take


def _arrow_type(column: Column) -> pa.DataType:
    if column.labels is not None or column.kind == "text":
        return pa.string()
    if column.kind == "timestamp":
        return pa.timestamp(column.unit)
    if column.shape is None:
        return pa.binary()
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.list_(kind) if column.shape else kind
