from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mms_sdk.compute.values import pack, unpack
from mms_sdk.errors import Damaged, InvalidRequest

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ARRAYS = st_numpy.arrays(
    st.sampled_from(["?", "i1", "u2", "<i8", "<f4", "<f8", "<c16", "<U5", "S3"]), st_numpy.array_shapes(min_dims=0)
)
VALUES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("__mms_")), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_what_is_packed_comes_back_as_it_was(value: Any) -> None:
    assert same(unpack(pack(value, what="it")), value)


def test_scalars_of_numpy_stay_what_they_are_and_arrays_of_jax_become_numpys() -> None:
    back = unpack(pack([np.float32(0.1), np.int8(-3), jnp.arange(3)], what="it"))
    assert [type(each) for each in back] == [np.float32, np.int8, np.ndarray]
    assert back[0] == np.float32(0.1)
    np.testing.assert_array_equal(back[2], [0, 1, 2])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "in the arguments there is a object"),
        ([{"a": open}], "there is a builtin_function_or_method"),
        ({1: 2}, "there is the key 1"),
        ({"__mms_array__": 0}, "there is the key '__mms_array__'"),
        (np.array([object()]), "there is one of object"),
        (np.zeros(2, [("a", "i4")]), "there is one of"),
        (b"bytes", "there is a bytes"),
        ({1, 2}, "there is a set"),
    ],
)
def test_what_does_not_travel_is_named(value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        pack(value, what="the arguments")


def test_a_value_within_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidRequest, match="nested at most 64 deep"):
        pack(endless, what="it")


def test_no_pickle_is_opened_and_no_garbage_taken_for_a_value() -> None:
    whole = io.BytesIO()
    np.savez(whole, a0=np.array([{"evil": 1}], object))
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("value.json", '{"__mms_array__": 0, "scalar": false}')
    for data in (whole.getvalue(), b"", b"PK nonsense", pack(1, what="it")[:-30]):
        with pytest.raises(Damaged, match="none that can be read"):
            unpack(data)
