"""Rows by the values of some of their columns: a digest of 16 bytes each, whatever the values weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data.kinds import tabular
from mms_sdk.errors import DataError
from mms_sdk.types import Array, Rows

DIGEST = "S16"


def keys_of(batch: pa.RecordBatch, names: Sequence[str], *, types: Mapping[str, pa.DataType]) -> Array:
    """Digests of the values of some columns.

    Args:
        batch: The rows.
        names: The columns, in this order.
        types: What values of a column are taken as before they are compared; one that is not named stays as it is.

    Returns:
        Of dtype `S16`, shape (rows,): equal values, equal digest. A missing value equals another one, and 0.0 is -0.0.
    """
    columns = [_as_compared(batch.column(name), types.get(name)) for name in names]
    taken = pa.RecordBatch.from_arrays(columns, names=[str(place) for place in range(len(names))])
    return as_keys(tabular.digests(taken, taken.schema.names))


def as_keys(digests: Array) -> Array:
    """Digests, uint8, of shape (rows, 16), as things that can be sorted."""
    return np.ascontiguousarray(digests).view(DIGEST).ravel()


def same(keys: Array, keep: Literal["first", "last"]) -> Rows:
    """For each row the number of the one with its key that stays."""
    if keep == "last":
        return len(keys) - 1 - same(keys[::-1], "first")[::-1]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found: Rows = first[inverse]
    return found


class SortedKeys:
    """Keys that are searched.

    Args:
        keys: Of rows, in their order.

    Attributes:
        order: Numbers of the rows, by their keys.
    """

    def __init__(self, keys: Array) -> None:
        self.order: Rows = np.argsort(keys, kind="stable")
        self._keys = keys[self.order]

    def find(self, keys: Array) -> Rows:
        """For each key the first row that has it; -1 if none has."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self.order[at], -1)

    def repeated(self, most: int) -> Rows:
        """Of keys that several rows have, at most so many, the second row with each."""
        again = self._keys[1:] == self._keys[:-1]
        again[1:] &= ~again[:-1]
        return np.sort(self.order[1:][again])[:most]


def _as_compared(values: pa.Array, kind: pa.DataType | None) -> pa.Array:
    if kind is not None and values.type != kind:
        try:
            values = values.cast(kind, safe=False)
        except pa.ArrowException as error:
            raise DataError(
                f"keys are compared as the dataset holds them, {kind}; new rows have {values.type}: "
                f"{str(error).splitlines()[0]}; convert them with mms.convert()"
            ) from error
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    if pa.types.is_floating(values.type):
        return pc.add(values, pa.scalar(0, values.type))
    return _as_bytes(values) if pa.types.is_fixed_size_list(values.type) else values


def _as_bytes(arrays: pa.Array) -> pa.Array:
    # Item by item, an array would take longer than all else.
    items = np.asarray(arrays.drop_null().flatten()) + 0
    rows = iter(items.reshape(-1, arrays.type.list_size))
    return pa.array([next(rows).tobytes() if there else None for there in arrays.is_valid().to_pylist()], pa.binary())
