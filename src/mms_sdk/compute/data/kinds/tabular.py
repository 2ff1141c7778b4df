"""Rows of tables: Arrow's types as columns of a dataset, and Arrow's values as what a part is written from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather

from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import files
from mms_sdk.types import Array

RESERVED = ("row_id", "row_source", "split")
"""Columns that every table has beside its own."""
TIME_UNITS = ("D", "h", "m", "s", "ms", "us", "ns")


def column_names(titles: Iterable[str], *, taken: Iterable[str] = RESERVED) -> dict[str, str]:
    """For each title a name that a column can have: lower case, `_` for what is no letter or digit, none twice."""
    used = set(taken)
    names = {}
    for title in titles:
        plain = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
        plain = plain if re.match(r"[a-z]", plain) else f"c_{plain}".rstrip("_")
        name, number = plain[:60], 2
        while name in used:
            name, number = f"{plain[:57]}_{number}", number + 1
        used.add(name)
        names[title] = name
    return names


def column_of(name: str, title: str, kind: pa.DataType, *, nullable: bool, length: int | None) -> Column:
    """The column that holds values of an Arrow type.

    Args:
        name: Its name.
        title: Its name in the source.
        kind: Arrow's type.
        nullable: Whether values are missing.
        length: Of lists, if all have the same.

    Raises:
        DataError: No column holds such values.
    """
    fields = _fields(kind, length)
    if fields is None:
        raise DataError(
            f"a column holds numbers, truth values, times, texts, bytes, or lists of numbers; {title!r} has "
            f"{kind}; leave it out with columns=, or convert it first"
        )
    if name == "image" and fields["dtype"] == "uint8" and (fields["shape"] or ())[2:] in ((1,), (3,)):
        fields |= {"kind": "image", "color": "gray" if fields["shape"][2] == 1 else "rgb"}
    return Column(name=name, title=title if title != name else None, nullable=nullable, **fields)


def _fields(kind: pa.DataType, length: int | None) -> dict[str, Any] | None:
    types = pa.types
    if types.is_dictionary(kind) and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
        return {"kind": "category", "dtype": "int32", "labels": ()}
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return {"kind": "text", "dtype": "uint8", "shape": None}
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return {"kind": "bytes", "dtype": "uint8", "shape": None}
    if types.is_timestamp(kind):
        return {"kind": "timestamp", "dtype": "int64", "unit": kind.unit}
    if types.is_date(kind):
        return {"kind": "timestamp", "dtype": "int64", "unit": "s"}
    if types.is_decimal(kind):
        return {"kind": "number", "dtype": "float64"}
    if isinstance(kind, pa.FixedShapeTensorType):
        return {"kind": "embedding", "dtype": item_dtype(kind.value_type), "shape": tuple(kind.shape)}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if (dtype := item_dtype(kind.value_type)) is None:
            return None
        return {"kind": "series" if length is None else "embedding", "dtype": dtype, "shape": (length,)}
    dtype = item_dtype(kind)
    return None if dtype is None else {"kind": "number", "dtype": dtype}


def item_dtype(kind: pa.DataType) -> str | None:
    """NumPy's dtype of Arrow's numbers and truth values; None for all else."""
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()))
    return None


def lengths(array: pa.Array) -> set[int]:
    """How many items the lists of an array have; none for what is no list."""
    if pa.types.is_fixed_size_list(array.type):
        return {array.type.list_size}
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return set(array.value_lengths().unique().drop_null().to_pylist())
    return set()


def values_in(column: Column, values: Sequence[Any]) -> Any:
    """Plain Python values, with None for what is missing, as what `PartWriter.write` takes."""
    if column.kind in ("category", "text"):
        kind = pa.string()
    elif column.shape is None:
        kind = pa.binary()
    elif column.kind == "timestamp":
        kind = pa.timestamp(column.unit)
    else:
        kind = pa.from_numpy_dtype(column.dtype)
        kind = pa.list_(kind) if column.shape else kind
    return values_of(column, pa.array(values, kind))


def values_of(column: Column, array: pa.Array) -> Any:
    """Arrow's values as what `PartWriter.write` takes."""
    valid = np.asarray(array.is_valid())
    if column.kind == "category" or column.kind == "label":
        values: Any = _codes(column, array)
    elif column.varies:
        return _rows(column, array)
    elif column.shape:
        values = _stacked(column, array, valid)
    else:
        values = _numbers(column, array)
    if not column.nullable and valid.all():
        return values
    return np.ma.MaskedArray(values, np.broadcast_to(~valid.reshape(-1, *(1 for _ in column.fixed)), values.shape))


def _codes(column: Column, array: pa.Array) -> Array:
    found = pc.index_in(_texts(array), pa.array(column.labels or (), pa.string()))
    return np.asarray(found.fill_null(0)).astype(column.dtype)


def _texts(array: pa.Array) -> pa.Array:
    return array.cast(pa.string())


def _rows(column: Column, array: pa.Array) -> list[Any]:
    if column.shape is None:
        return list(array.cast(pa.binary()).to_pylist())
    ends = np.asarray(array.value_lengths().fill_null(0)).cumsum()
    items = np.asarray(array.flatten()).astype(column.dtype, copy=False)
    rows = np.split(items, ends[:-1]) if len(ends) else []
    return [row if there else None for row, there in zip(rows, np.asarray(array.is_valid()), strict=True)]


def _stacked(column: Column, array: pa.Array, valid: Array) -> Array:
    out = np.zeros((len(array), *column.fixed), column.dtype)
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    items = storage.drop_null().flatten()
    if items.null_count:
        raise DataError(f"lists of column {column.name!r} hold numbers; {items.null_count} items have no value")
    out[valid] = np.asarray(items).reshape(-1, *column.fixed)
    return out


def _numbers(column: Column, array: pa.Array) -> Array:
    if column.kind == "timestamp":
        array = array.cast(pa.timestamp(column.unit, getattr(array.type, "tz", None))).cast(pa.int64())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if array.null_count:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else pa.scalar(0).cast(array.type))
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(column.dtype, copy=False)


def digests(batch: pa.RecordBatch, names: Sequence[str]) -> Array:
    """16 bytes of BLAKE2b over each row: equal values, equal digest.

    Returns:
        uint8, shape (rows, 16).
    """
    import hashlib

    import orjson

    columns = [_plain(batch.column(name)) for name in names]
    sums = [
        hashlib.blake2b(orjson.dumps(row, default=_hex), digest_size=16).digest() for row in zip(*columns, strict=True)
    ]
    return np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 16)


def _plain(array: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_dictionary(array.type):
        array = _texts(array)
    elif isinstance(array.type, pa.FixedShapeTensorType) and not array.null_count:
        items = np.asarray(array.storage.flatten()).reshape(len(array), prod(array.type.shape))
        return [row.tobytes() for row in items]  # as lists of Python's numbers, they would take thirty times the room
    elif isinstance(array, pa.ExtensionArray):
        array = array.storage
    return list(array.to_pylist())


def _hex(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def told_values(column: Column, values: Any) -> list[Any]:
    """Values of a column for people: texts, names of codes, times, numbers; of an array its dtype and shape."""
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ndarray) else [value is None for value in values]
    return [None if np.all(gone) else _told(column, value) for value, gone in zip(values, masked, strict=True)]


def _told(column: Column, value: Any) -> Any:
    if column.kind == "text":
        return value.decode("utf-8", "replace")
    if column.shape is None:
        return f"{len(value):,} bytes"
    if np.ndim(value):
        return f"{value.dtype} {'×'.join(map(str, value.shape))}"
    if column.labels is not None:
        return label_of(column.labels, int(value))
    if column.kind == "timestamp" and column.unit in TIME_UNITS:
        return re.sub(r"\.0+$", "", str(np.asarray(value, "int64").astype(f"M8[{column.unit}]")))
    if value.dtype.kind == "f" and value.dtype.itemsize < 8:
        return float(str(value))  # 0.1, not what a wider float makes of its bits
    return value.item()


def label_of(labels: Sequence[str], code: int) -> str:
    """The name of a code, also of one that names nothing."""
    return labels[code] if 0 <= code < len(labels) else f"code {code}"


def write_arrays(arrays: Mapping[str, Any], path: Path) -> Path:
    """Keeps NumPy arrays, by column and with one row along the first axis, as an Arrow file.

    Raises:
        InvalidRequest: They differ in rows, or hold what no column can.
    """
    columns = {name: np.asanyarray(values) for name, values in arrays.items()}
    rows = {name: len(values) if values.ndim else 0 for name, values in columns.items()}
    if len(set(rows.values())) != 1 or not all(values.ndim for values in columns.values()):
        raise InvalidRequest(f"arrays by column have the same number of rows; got {rows or 'none'}")
    try:
        table = pa.table({name: _as_arrow(values) for name, values in columns.items()})
    except (pa.ArrowException, TypeError) as error:
        raise InvalidRequest(f"a column is an array of numbers, truth values, times or texts; {error}") from error
    with files.writing(path):
        pyarrow.feather.write_feather(table, path)
    return path


def tensors(values: Array) -> pa.Array:
    """An array of each row, as one of Arrow's."""
    items = pa.array(np.ascontiguousarray(values).reshape(-1))
    kind = pa.fixed_shape_tensor(items.type, values.shape[1:])
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(items, prod(values.shape[1:])))


def _as_arrow(values: Array) -> pa.Array:
    if values.ndim > 1:
        return tensors(values)
    return pa.array(values, from_pandas=isinstance(values, np.ma.MaskedArray))
