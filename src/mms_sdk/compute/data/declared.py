"""What comes in as Arrow, for columns that somebody declared rather than for such as would suit it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data.kinds.tabular import values_of
from mms_sdk.errors import DataError
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.counts import by_label


def values_as(column: Column, array: pa.Array) -> Any:
    """Values of an Arrow array as a writer takes them for a column; texts become the codes of a column with labels.

    Raises:
        DataError: A text is none of the labels, a list has another length, or a value does not fit the dtype.
        InvalidRequest: A code names no label.
    """
    if column.labels is not None and _is_text(array.type):
        known = pa.array(column.labels, pa.string())
        codes = pc.index_in(array.cast(pa.string()), known)
        unknown = pc.filter(array, pc.and_(codes.is_null(), array.is_valid()))
        if len(unknown):
            raise DataError(
                f"labels of column {column.name!r} are {list(column.labels)}; got {unknown[0].as_py()!r}; add it at "
                f"the end of the column's labels"
            )
        return values_of(column, array)
    if column.labels is not None:
        by_label(column, array.drop_null().to_numpy(zero_copy_only=False))
        return values_of(column.model_copy(update={"kind": "number"}), array)
    if column.shape and not column.varies and (lengths := set(pc.list_value_length(array).drop_null().to_pylist())):
        size = column.item_bytes // np.dtype(column.dtype).itemsize
        if lengths != {size}:
            raise DataError(f"lists of column {column.name!r} have {size} values; some have {min(lengths - {size})}")
    if column.shape is not None and column.kind != "timestamp":
        array = _as_declared(column, array)
    return values_of(column, array)


def _as_declared(column: Column, array: pa.Array) -> pa.Array:
    # Arrow refuses what NumPy would wrap around or cut off.
    values = pa.from_numpy_dtype(np.dtype(column.dtype))
    try:
        return array.cast(pa.list_(values) if column.shape else values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"values of column {column.name!r} are {column.dtype}; {error}; convert them first") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
