"""Values of records: each as its column has it, or the reason why not."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from mms_sdk.compute.data.records import Misfit, Rows
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column

COLUMNS = {
    "int8": Column(name="x", kind="number", dtype="int8"),
    "uint64": Column(name="x", kind="number", dtype="uint64"),
    "float32": Column(name="x", kind="number", dtype="float32"),
    "float64": Column(name="x", kind="number", dtype="float64"),
    "bool": Column(name="x", kind="number", dtype="bool"),
    "text": Column(name="x", kind="text", dtype="uint8", shape=None),
    "bytes": Column(name="x", kind="bytes", dtype="uint8", shape=None),
    "class": Column(name="x", kind="category", dtype="int32", labels=("low", "high")),
    "s": Column(name="x", kind="timestamp", dtype="int64", unit="s"),
    "ms": Column(name="x", kind="timestamp", dtype="int64", unit="ms"),
    "ns": Column(name="x", kind="timestamp", dtype="int64", unit="ns"),
    "vector": Column(name="x", kind="embedding", dtype="float32", shape=(2,)),
    "matrix": Column(name="x", kind="embedding", dtype="int16", shape=(2, 2)),
    "series": Column(name="x", kind="series", dtype="float64", shape=(None,)),
}
NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 500_000, tzinfo=dt.timezone(dt.timedelta(hours=1)))


def taken(kind: str, value: object) -> object:
    (found,), _ = Rows([COLUMNS[kind]], max_bytes=1000).take({"x": value})
    return found


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        ("int8", -128, -128),
        ("int8", 3.0, 3),
        ("int8", np.uint64(7), 7),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("float32", 1, 1.0),
        ("float32", np.float64(0.5), 0.5),
        ("float64", float("-inf"), float("-inf")),
        ("bool", np.True_, True),
        ("text", "å\x00𝄞", "å\x00𝄞"),
        ("bytes", bytearray(b"ab"), b"ab"),
        ("class", "high", "high"),
        ("ms", "2026-01-02T11:00:00.500Z", 1767351600500),
        ("ms", NOON, 1767351600500),
        ("ns", NOON, 1767351600500000000),
        ("ms", dt.datetime(1969, 12, 31, 23, 59, 59), -1000),
        ("s", 12, 12),
        ("vector", [1, 2.5], [1, 2.5]),
        ("vector", (1, float("inf")), [1, float("inf")]),
        ("matrix", np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        ("series", [], []),
        ("series", np.arange(3), [0, 1, 2]),
    ],
)
def test_a_value_that_fits_comes_in_as_it_is(kind: str, value: object, kept: object) -> None:
    found = taken(kind, value)
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == kept
    assert taken(kind, None) is None


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        *(("int8", value, "whole numbers from -128 to 127") for value in (128, -129, 1.5, "1", True, [], float("nan"))),
        *(("int8", value, "whole numbers from -128 to 127") for value in (2**70, 10**5000, 1e300, float("inf"), 1j)),
        *(("uint64", value, "whole numbers from 0 to 18446744073709551615") for value in (-1, 2**64)),
        *(("float32", value, "numbers") for value in ("1.5", True, b"1", {}, 1e39, 10**5000)),
        *(("bool", value, "truth values") for value in (0, 1, "true", "no")),
        *(("text", value, "texts") for value in (b"x", 1, ["x"], "\ud800")),
        *(("bytes", value, "bytes") for value in ("x", [1], 7)),
        *(("class", value, "one of") for value in ("middle", "", 0, ["low"])),
        *(("s", value, "a time as ISO 8601") for value in ("noon", "2026-13-01", NOON, 1.5, True, 2**63, {})),
        *(("ns", value, "a time as ISO 8601") for value in (dt.datetime(9999, 1, 1, tzinfo=dt.UTC), -(2**63))),
        *(("vector", value, "float32 arrays of shape") for value in ([1], [1, 2, 3], [[1, 2]], "12", b"12", {"a": 1})),
        *(("vector", value, "float32 arrays of shape") for value in ([1, None], [1, "2"], [1, [2]], 7, [1, 1e39])),
        *(("matrix", value, "int16 arrays of shape") for value in ([[1, 2], [3, 4.5]], [[1, 2], [3, 2**15]], [1, 2])),
        *(("series", value, "lists of float64") for value in (1.5, [[1]], ["a"], [10**5000])),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_a_value_that_does_not_fit_tells_the_rule_and_itself(kind: str, value: object, rule: str) -> None:
    with pytest.raises(Misfit) as found:
        taken(kind, value)
    assert str(found.value).startswith(f"column 'x' takes {rule}")
    assert "; got " in str(found.value)
    assert len(str(found.value)) < 300


def test_a_value_that_is_nested_a_thousand_times_or_refers_to_itself_does_not_fit() -> None:
    deep: list = []
    for _ in range(1000):
        deep = [deep]
    round_and_round: list = []
    round_and_round.append(round_and_round)
    for value in (deep, round_and_round):
        for kind in COLUMNS:
            with pytest.raises(Misfit):
                taken(kind, value)


def test_a_record_that_weighs_more_than_a_batch_does_not_fit() -> None:
    columns = [COLUMNS["text"], COLUMNS["bytes"].model_copy(update={"name": "y"})]
    rows = Rows(columns, max_bytes=1000)
    assert rows.take({"x": "a" * 500, "y": b"b" * 500, "z": "c" * 5000})[1] == 1000
    with pytest.raises(Misfit, match="a record weighs at most as much as a batch, 1,000 bytes; got 1,001"):
        rows.take({"x": "a" * 501, "y": b"b" * 500})


def test_rows_are_known_by_the_digest_that_an_ingested_table_gives_them() -> None:
    columns = [COLUMNS["int8"], COLUMNS["text"].model_copy(update={"name": "y"})]
    rows = Rows(columns, max_bytes=1000)
    batch = rows.as_arrow([rows.take({"x": 1, "y": "a"})[0], (None, None)], ["one", "two"], stream="s")
    assert batch.select(["x", "y", "#source", "#row"]).to_pylist() == [
        {"x": 1, "y": "a", "#source": "s", "#row": "one"},
        {"x": None, "y": None, "#source": "s", "#row": "two"},
    ]
    assert len(set(batch.column("#id").to_pylist())) == 2
    assert rows.as_arrow([], [], stream="s").num_rows == 0
    assert batch.schema.field("x").type == pa.int8()


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        (Column(name="x", kind="label", dtype="int32", labels=()), "a stream's classes are known before"),
        (Column(name="x", kind="category", dtype="int32"), "a stream's classes are known before"),
        (Column(name="x", kind="label", dtype="float32", labels=("a",)), "a class is one whole number"),
        (Column(name="x", kind="label", dtype="int8", labels=tuple(map(str, range(200)))), "a class is one whole"),
        (Column(name="x", kind="timestamp", dtype="int64"), "a timestamp is an int64 and has the unit"),
        (Column(name="x", kind="timestamp", dtype="float64", unit="s"), "a timestamp is an int64 and has the unit"),
        (Column(name="x", kind="text", dtype="uint8"), "texts are of any length"),
        (Column(name="x", kind="audio", dtype="int16", shape=(None, 2)), "a stream brings arrays of one shape"),
        (Column(name="x", kind="embedding", dtype="int16", shape=(0,)), "a stream brings arrays of one shape"),
        (Column(name="x", kind="id", dtype="uint8", shape=(16,)), "columns of kind id are made by MMS"),
    ],
)
def test_a_column_that_no_record_can_fill_is_refused_at_once(column: Column, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule):
        Rows([column], max_bytes=1000)
