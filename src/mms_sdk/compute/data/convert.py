"""Values of one type as values of another: those that come through without loss, and which do not.

Whole numbers, truth values, times and texts come through exactly, or not at all. Among floats a value is rounded to the
nearest one there is, as floats are, and is lost where that is infinite, or zero for what is not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cleaning import Convert
from mms_sdk.types import Array

Converter = Callable[[pa.Array], pa.Array]
"""From values to as many of another type, null where a value has none."""


def converter(step: Convert, kind: pa.DataType) -> Converter:
    """What converts values of an Arrow type.

    Raises:
        InvalidRequest: There is no way from the one to the other, or it takes a unit or a format that is not given.
    """
    if not (is_text(kind) or _is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise InvalidRequest(
            f"numbers, truth values, times and texts are converted; column {step.column!r} holds {kind}; name another"
        )
    if step.to in ("text", "category"):
        return _texts
    if step.to == "timestamp":
        return _to_times(step, kind)
    to = pa.bool_() if step.to == "bool" else pa.from_numpy_dtype(step.to)
    if is_text(kind):
        return lambda values: _of_texts(values, to)
    if _is_number(kind):
        return lambda values: _numbers(values, to)
    return lambda values: _numbers(values.cast(pa.timestamp(_unit(kind))).cast(pa.int64()), to)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _unit(kind: pa.DataType) -> str:
    return str(getattr(kind, "unit", "s")) if pa.types.is_timestamp(kind) else "s"


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return values.cast(pa.string())


def _of_texts(values: pa.Array, to: pa.DataType) -> pa.Array:
    values = pc.utf8_trim_whitespace(values.cast(pa.string()))
    if not pa.types.is_floating(to):
        return as_far_as_possible(values, to)
    found = as_far_as_possible(values, pa.float64())
    spelled_infinite = pc.match_substring(values, "inf", ignore_case=True)
    spelled_zero = pc.invert(pc.match_substring_regex(values, "^[^eE]*[1-9]"))
    lost = pc.or_(
        pc.and_not(pc.is_inf(found), spelled_infinite), pc.and_not(pc.equal(found, pa.scalar(0.0)), spelled_zero)
    )
    return _numbers(pc.if_else(lost, pa.scalar(None, pa.float64()), found), to)


def _numbers(values: pa.Array, to: pa.DataType) -> pa.Array:
    missing = np.asarray(pc.is_null(values, nan_is_null=not pa.types.is_floating(to)))
    zero = pa.scalar(False) if pa.types.is_boolean(values.type) else pa.scalar(0).cast(values.type)
    given = np.asarray(pc.if_else(pa.array(missing), zero, values))
    with np.errstate(over="ignore"):  # what does not fit is found by comparing
        if given.dtype.kind == "b":
            given = given.astype(np.uint8)
        lost, found = _lost(given, np.dtype(to.to_pandas_dtype()))
    return pa.array(found, to, mask=missing | lost)


def _lost(given: Array, to: np.dtype[Any]) -> tuple[Array, Array]:
    if to.kind == "b":
        return (given != 0) & (given != 1), given != 0
    if to.kind == "f":
        found = given.astype(to)
        if given.dtype.kind == "f":
            return (np.isinf(found) & ~np.isinf(given)) | ((found == 0) & (given != 0)), found
        back, fits = _whole(found.astype(np.float64), given.dtype)
        return ~fits | (back != given), found
    if given.dtype.kind == "f":
        found, fits = _whole(given.astype(np.float64), to)
        return ~fits | (found.astype(np.float64) != given), found
    bounds, own = np.iinfo(to), np.iinfo(given.dtype)
    lost = np.zeros(len(given), bool)
    if bounds.min > own.min:
        lost |= given < bounds.min
    if bounds.max < own.max:
        lost |= given > bounds.max
    return lost, given.astype(to)


def _whole(floats: Array, to: np.dtype[Any]) -> tuple[Array, Array]:
    # Beyond the range what a cast gives depends on the machine; the upper bound itself is a float that is beyond.
    bounds = np.iinfo(to)
    fits = np.isfinite(floats) & (floats >= float(bounds.min)) & (floats < float(bounds.max + 1))
    return np.where(fits, floats, 0).astype(to), fits


def _to_times(step: Convert, kind: pa.DataType) -> Converter:
    if is_text(kind):
        return _times_of_texts(step, step.unit or "us")
    if _is_number(kind):
        if step.unit is None:
            raise InvalidRequest(
                f"numbers are times of a unit, counted from 1970-01-01 UTC; column {step.column!r} holds {kind}; give "
                f"unit='s', 'ms', 'us' or 'ns'"
            )
        unit = pa.timestamp(step.unit)
        return lambda values: _numbers(values, pa.int64()).cast(unit)
    zone = getattr(kind, "tz", None)
    to = pa.timestamp(step.unit or _unit(kind), zone)
    return lambda values: as_far_as_possible(values, to)


def _times_of_texts(step: Convert, unit: str) -> Converter:
    if (form := step.format) is not None:
        _refuse_no_format(form)
        return lambda values: as_far_as_possible(_parsed(values.cast(pa.string()), form), pa.timestamp(unit))

    def convert(values: pa.Array) -> pa.Array:
        plain = as_far_as_possible(values, pa.timestamp(unit))
        if plain.null_count == values.null_count:
            return plain
        zoned = as_far_as_possible(values, pa.timestamp(unit, "UTC"))  # those that tell their offset
        return pc.coalesce(plain, zoned.cast(pa.timestamp(unit)))

    return convert


def _refuse_no_format(form: str) -> None:
    when = dt.datetime(2001, 2, 3, 4, 5, 6)
    try:
        dt.datetime.strptime(when.strftime(form), form)
    except ValueError as error:
        raise InvalidRequest(f"a format is one of strptime, e.g. '%d.%m.%Y'; got {form!r}: {error}") from error


def _parsed(texts: pa.Array, form: str) -> pa.Array:
    # Python's, since Arrow's takes the 31st of February for the 2nd of March.
    encoded = texts.dictionary_encode()
    times = [_time(text, form) for text in encoded.dictionary.to_pylist()]
    return pa.array(times, pa.timestamp("us")).take(encoded.indices)


def _time(text: str, form: str) -> dt.datetime | None:
    try:
        return dt.datetime.strptime(text, form)
    except ValueError:
        return None


def as_far_as_possible(values: pa.Array, to: pa.DataType) -> pa.Array:
    """Arrow's cast, with null for each value that it refuses."""
    try:
        return values.cast(to)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, to)
        half = len(values) // 2
        return pa.concat_arrays([as_far_as_possible(values[:half], to), as_far_as_possible(values[half:], to)])
