from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mms_sdk.compute.data.declared import values_as
from mms_sdk.errors import DataError
from mms_sdk.schema.dataset import Column


def column(dtype: str, shape: tuple[int | None, ...] = ()) -> Column:
    return Column(name="x", kind="embedding", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("dtype", "shape", "rows"),
    [
        ("int8", (), [1, 300]),
        ("int32", (), [1.0, 1.5]),
        ("uint8", (2,), [[1, 2], [1, 300]]),
        ("uint8", (2,), [[1, 2], [1, -1]]),
        ("int32", (2,), [[1.0, 2.0], [1.0, 2.5]]),
        ("uint8", (None,), [[1], [1, 256, 3]]),
        ("int64", (None,), [[1.0], [0.5]]),
        ("int64", (None,), [["one"]]),
        ("int64", (), [{"a": 1}]),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused_and_never_wrapped_or_cut(
    dtype: str, shape: tuple[int | None, ...], rows: list[Any]
) -> None:
    with pytest.raises(DataError, match=f"values of column 'x' are {dtype}; .*; convert them first"):
        values_as(column(dtype, shape), pa.array(rows))


def test_values_of_another_type_that_fit_are_taken() -> None:
    np.testing.assert_array_equal(
        values_as(column("uint8", (2,)), pa.array([[1.0, 2.0], [255.0, 0.0]])), [[1, 2], [255, 0]]
    )
    found = values_as(column("float32", (None,)), pa.array([[1], [2, 3]], pa.list_(pa.int64())))
    assert [row.dtype.name for row in found] == ["float32", "float32"]
    assert [row.tolist() for row in found] == [[1.0], [2.0, 3.0]]
