"""Metrics by name: columns of numbers, made of the rows of a metric log, made fewer for a chart, and sent as bytes.

What is sent (`CONTENT_TYPE`) is read with a `DataView` and a `JSON.parse`. All numbers are little-endian.

```
bytes 0 … 7    MMSROWS1
bytes 8 … 11   how many bytes of JSON follow, as an unsigned integer
JSON           {"job": …, "offset": …, "series": [{"name": "train/loss", "rows": 3}, …]}, and spaces behind it
numbers        from the next multiple of 8: for each series, in that order, its steps, its times, its values, each
               `rows` float64
```
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from mms_sdk.errors import Damaged
from mms_sdk.types import Array

CONTENT_TYPE = "application/vnd.mms.metrics"
_MAGIC = b"MMSROWS1"
_LENGTH = struct.Struct("<I")
_PLACE = ("step", "time")  # of a row, which is no metric
_NO_NUMBERS = frozenset({"nan", "inf", "-inf"})  # as a log spells them


class Series(NamedTuple):
    """One metric: float64 arrays, each of shape (rows,).

    Attributes:
        step: The step that each value is of.
        time: When it was logged, in seconds since 1970.
        value: The values; those that were no finite number are NaN or infinite.
    """

    step: Array
    time: Array
    value: Array


def series_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Columns of the rows of a log, by name; what is no number has none."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        step, time = (_number(row.get(name)) for name in _PLACE)
        for name, told in row.items():
            if name not in _PLACE and (value := _number(told)) is not None:
                found[name] += (_or_nan(step), _or_nan(time), value)
    columns = {name: np.array(numbers, np.float64).reshape(-1, 3) for name, numbers in found.items()}
    return {name: Series(each[:, 0], each[:, 1], each[:, 2]) for name, each in columns.items()}


def shown(series: Series, points: int) -> Series:
    """At most so many rows, at least 2, among which are the least and the greatest value of each stretch.

    A stretch in which a value is NaN shows that.
    """
    rows = len(series.value)
    if rows <= points:
        return series
    stretch = -(-rows // (points // 2))
    whole = rows - rows % stretch
    table = series.value[:whole].reshape(-1, stretch)
    begins = np.arange(0, whole, stretch)
    found = [begins + table.argmin(axis=1), begins + table.argmax(axis=1)]
    if whole < rows:
        rest = series.value[whole:]
        found.append(whole + np.array([rest.argmin(), rest.argmax()]))
    kept = np.unique(np.concatenate(found))
    return Series(*(np.asarray(column[kept]) for column in series))


def joined(pieces: Sequence[Mapping[str, Series]]) -> dict[str, Series]:
    """Columns one behind another."""
    found: dict[str, list[Series]] = defaultdict(list)
    for piece in pieces:
        for name, series in piece.items():
            found[name].append(series)
    return {name: Series(*map(np.concatenate, zip(*each, strict=True))) for name, each in found.items()}


def pack(series: Mapping[str, Series], *, job: str, offset: int) -> bytes:
    """Columns as bytes, with whose they are and the offset behind which to go on."""
    listed = [{"name": name, "rows": len(each.value)} for name, each in series.items()]
    told = orjson.dumps({"job": job, "offset": offset, "series": listed})
    told += b" " * (-(len(_MAGIC) + _LENGTH.size + len(told)) % 8)
    numbers = [column.astype("<f8").tobytes() for each in series.values() for column in each]
    return b"".join([_MAGIC, _LENGTH.pack(len(told)), told, *numbers])


def unpack(packed: bytes) -> tuple[dict[str, Series], int]:
    """Columns of bytes that `pack` made, and the offset behind which to go on.

    Raises:
        Damaged: They are something else.
    """
    begin = len(_MAGIC) + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack(packed[len(_MAGIC) : begin])
        told = orjson.loads(packed[begin : begin + length])
        numbers = np.frombuffer(packed, "<f8", offset=begin + length)
        ends = np.cumsum([each["rows"] for each in told["series"] for _ in Series._fields])
        columns = np.split(numbers, ends)
        if not packed.startswith(_MAGIC) or (ends.size and ends[-1] != numbers.size) or columns[-1].size:
            raise ValueError("its parts do not fit")
        found = {each["name"]: Series(*columns[3 * at : 3 * at + 3]) for at, each in enumerate(told["series"])}
        return found, told["offset"]
    except (struct.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise Damaged(f"what was answered is no metrics: {error}; ask again") from error


def _number(told: Any) -> float | None:
    if isinstance(told, bool):
        return None
    if isinstance(told, int | float):
        return told
    return float(told) if isinstance(told, str) and told in _NO_NUMBERS else None


def _or_nan(number: float | None) -> float:
    return float("nan") if number is None else number
