"""Values come through a conversion exactly, or not at all; against Python's own whole numbers, floats and times."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.compute.data.convert import converter
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cleaning import Convert

INTS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")


def convert(values, to: str, **options) -> list:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    found = converter(Convert("x", to, **options), array.type)(array)
    assert len(found) == len(array)
    return found.to_pylist()


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1), st.sampled_from(INTS))
def test_whole_numbers_fit_the_range_of_another_type_or_are_lost(values, to):
    bounds = np.iinfo(to)
    array = pa.array(values, pa.int64())
    assert convert(array, to) == [v if v is not None and bounds.min <= v <= bounds.max else None for v in values]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**54), 2**54), min_size=1), st.sampled_from(FLOATS[1:])
)
def test_a_whole_number_becomes_a_float_only_if_that_is_the_same_number(values, to):
    kind = np.dtype(to).type
    expected = [float(kind(v)) if int(kind(v)) == v else None for v in values]
    assert convert(pa.array(values, pa.int64()), to) == expected


def test_the_greatest_whole_numbers_are_no_floats():
    assert convert(pa.array([2**63 - 1, 2**53, 2**53 + 1]), "float64") == [None, 2.0**53, None]
    assert convert(pa.array([2**64 - 1, 2**63], pa.uint64()), "float64") == [None, 2.0**63]
    assert convert(pa.array([65504, 65505, 2049, 2048]), "float16") == [65504.0, None, None, 2048.0]


@given(st.lists(st.floats(width=64) | st.integers(-300, 300).map(float), min_size=1), st.sampled_from(INTS))
def test_a_float_becomes_a_whole_number_only_if_it_is_one_that_fits(values, to):
    bounds = np.iinfo(to)
    expected = [
        int(v) if math.isfinite(v) and v == int(v) and bounds.min <= int(v) <= bounds.max else None for v in values
    ]
    assert convert(pa.array(values, pa.float64()), to) == expected


def test_floats_at_the_ends_of_a_range_are_told_apart():
    assert convert([2.0**63, -(2.0**63), 2.0**64, -1.0], "int64") == [None, -(2**63), None, -1]
    assert convert([2.0**64, 2.0**63, -0.0, -1.0], "uint64") == [None, 2**63, 0, None]


def test_floats_are_rounded_to_the_nearest_and_lost_where_that_is_infinite_or_zero():
    found = convert([0.1, 1e300, 1e-60, math.inf, math.nan, 0.0, None], "float32")
    assert found[:4] == [float(np.float32(0.1)), None, None, math.inf]
    assert math.isnan(found[4])
    assert found[5:] == [0.0, None]


def test_only_zero_and_one_are_truth_values():
    assert convert([0, 1, 2, None], "bool") == [False, True, None, None]
    assert convert([0.0, 1.0, 0.5, math.nan], "bool") == [False, True, None, None]
    assert convert(["true", "False", "1", "0", "yes", ""], "bool") == [True, False, True, False, None, None]
    assert convert([True, False, None], "int8") == [1, 0, None]


@given(st.lists(st.text(max_size=5) | st.integers(-(10**6), 10**6).map(str) | st.floats().map(repr), min_size=1))
def test_a_text_becomes_a_number_only_if_it_spells_one(texts):
    found = convert(pa.array(texts, pa.string()), "float64")
    for text, value in zip(texts, found, strict=True):
        if value is not None:
            said = float(text)
            assert value == said or (math.isnan(value) and math.isnan(said))
    for text, value in zip(texts, convert(pa.array(texts, pa.string()), "int16"), strict=True):
        if value is not None:
            assert int(text, 0 if text.strip().lower().startswith("0x") else 10) == value


def test_texts_that_spell_too_much_or_nothing_are_lost():
    assert convert(["1e400", "-1e-400", "inf", " 2 ", "1,5", "", "12 apples"], "float64") == [
        None,
        None,
        math.inf,
        2.0,
        None,
        None,
        None,
    ]
    assert convert(["300", "-1", "1.0", "7"], "uint8") == [None, None, None, 7]


def test_iso_times_are_read_with_and_without_an_offset():
    texts = ["2024-02-29", "2024-01-02T03:04:05Z", "2024-01-02T03:04:05+02:00", "2023-02-29", "soon", None]
    assert convert(texts, "timestamp") == [
        dt.datetime(2024, 2, 29),
        dt.datetime(2024, 1, 2, 3, 4, 5),
        dt.datetime(2024, 1, 2, 1, 4, 5),
        None,
        None,
        None,
    ]


@given(
    st.lists(
        st.dates(min_value=dt.date(1000, 1, 1)).map(lambda day: day.strftime("%d.%m.%Y")) | st.text(max_size=10),
        min_size=1,
    )
)
def test_times_of_a_format_are_those_that_python_reads(texts):
    def read(text: str) -> dt.datetime | None:
        try:
            return dt.datetime.strptime(text, "%d.%m.%Y")
        except ValueError:
            return None

    assert convert(pa.array(texts, pa.string()), "timestamp", format="%d.%m.%Y") == [read(text) for text in texts]


def test_a_day_that_is_not_in_the_calendar_is_lost_and_not_moved():
    assert convert(["31.02.2024"], "timestamp", format="%d.%m.%Y") == [None]


def test_numbers_are_times_of_the_unit_and_times_keep_only_what_their_unit_can_say():
    assert convert([0, 86400, None], "timestamp", unit="s") == [dt.datetime(1970, 1, 1), dt.datetime(1970, 1, 2), None]
    assert convert([1.5, 2.0], "timestamp", unit="s") == [None, dt.datetime(1970, 1, 1, 0, 0, 2)]
    milliseconds = pa.array([1000, 1001], pa.timestamp("ms"))
    assert convert(milliseconds, "timestamp", unit="s") == [dt.datetime(1970, 1, 1, 0, 0, 1), None]
    assert convert(milliseconds, "int64") == [1000, 1001]
    assert convert(pa.array([dt.datetime(2300, 1, 1)]), "timestamp", unit="ns") == [None]


def test_everything_has_a_text_but_nan():
    assert convert([1, None], "text") == ["1", None]
    assert convert([1.5, math.nan, math.inf], "text") == ["1.5", None, "inf"]
    assert convert([True], "category") == ["true"]


def test_no_rows_are_no_rows():
    for kind in (pa.string(), pa.int64(), pa.float32(), pa.bool_()):
        for to in ("int8", "float32", "bool", "text"):
            assert convert(pa.array([], kind), to) == []


@pytest.mark.parametrize(
    ("kind", "to", "options", "said"),
    [
        (pa.list_(pa.int64()), "text", {}, "column 'x' holds list"),
        (pa.binary(), "int8", {}, "holds binary"),
        (pa.int64(), "timestamp", {}, "give unit="),
        (pa.string(), "timestamp", {"format": "%Q"}, "bad directive"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_way_out(kind, to, options, said):
    with pytest.raises(InvalidRequest, match=said):
        converter(Convert("x", to, **options), kind)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"to": "int128"}, "to"),
        ({"to": "object"}, "to"),
        ({"to": "int8", "unit": "s"}, "are of times"),
        ({"to": "timestamp", "format": "%d %z"}, "without its zone"),
        ({"to": "int8", "errors": "ignore"}, "errors"),
    ],
)
def test_what_is_asked_for_is_checked_when_it_is_said(fields, said):
    with pytest.raises(InvalidRequest, match=said):
        Convert(column="x", **fields)
