"""Columns of a metric log hold its numbers, whole or made fewer, in memory, on the disk and as bytes."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.errors import Damaged, Unavailable
from mms_sdk.storage import metric_index, metric_log
from mms_sdk.storage.metric_index import charted
from mms_sdk.storage.series import Series, joined, pack, series_of, shown, unpack

MOST = 2**20


def of(values: Any) -> Series:
    values = np.asarray(values, np.float64)
    return Series(np.arange(len(values), dtype=np.float64), np.arange(len(values)) / 4 + 1e9, values)


def same(one: Mapping[str, Series], other: Mapping[str, Series]) -> None:
    assert one.keys() == other.keys()
    for name, series in one.items():
        for mine, theirs in zip(series, other[name], strict=True):
            np.testing.assert_array_equal(mine, theirs)


# Of rows -----------------------------------------------------------------------------------------------------------


def test_rows_that_hold_different_metrics_become_columns_of_different_lengths() -> None:
    rows = [
        {"step": 1, "time": 10.5, "running/loss": 2.0},
        {"step": 2, "time": 11.5, "running/loss": "nan", "word": "x", "flag": True, "list": [1], "none": None},
        {"step": 2, "time": 12.0, "epoch": 1, "val/loss": "-inf"},
        {"note": "no number"},
        {"val/loss": 3},
    ]

    found = series_of(rows)

    same(
        found,
        {
            "running/loss": Series(np.array([1.0, 2]), np.array([10.5, 11.5]), np.array([2.0, np.nan])),
            "epoch": Series(np.array([2.0]), np.array([12.0]), np.array([1.0])),
            "val/loss": Series(np.array([2, np.nan]), np.array([12.0, np.nan]), np.array([-np.inf, 3])),
        },
    )
    assert series_of([]) == {}


# Fewer -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=False), max_size=300), st.integers(2, 50))
def test_a_chart_is_within_its_bound_in_order_and_has_the_extremes(values: list[float], points: int) -> None:
    whole = of(values)

    found = shown(whole, points)

    assert len(found.value) <= max(points, 2)
    assert (np.diff(found.step) > 0).all()
    np.testing.assert_array_equal(found.value, whole.value[found.step.astype(int)])
    np.testing.assert_array_equal(found.time, whole.time[found.step.astype(int)])
    if values:
        assert (found.value.min(), found.value.max()) == (min(values), max(values))
    if len(values) <= points:
        same({"x": found}, {"x": whole})


def test_each_stretch_shows_its_own_extremes() -> None:
    values = np.zeros(1003)
    values[[5, 250, 251, 1002]] = 1, -2, 3, 9

    found = shown(of(values), 10)  # five stretches of 201

    assert set(found.step) >= {5, 250, 251, 1002}
    assert len(found.step) == 8  # two of the stretches are level


def test_what_is_no_number_is_seen_however_few_the_points() -> None:
    values = np.arange(10_000, dtype=float)
    values[777] = math.nan
    values[5000] = math.inf

    found = shown(of(values), 20).value

    assert np.isnan(found).sum() == 1
    assert np.isinf(found).sum() == 1


# Bytes -------------------------------------------------------------------------------------------------------------


def test_bytes_are_what_the_page_says_they_are() -> None:
    packed = pack({"é": of([1.5, math.nan]), "b": of([])}, job="J", offset=7)

    (length,) = struct.unpack_from("<I", packed, 8)
    told = orjson.loads(packed[12 : 12 + length])
    assert packed[:8] == b"MMSROWS1"
    assert told == {"job": "J", "offset": 7, "series": [{"name": "é", "rows": 2}, {"name": "b", "rows": 0}]}
    assert (12 + length) % 8 == 0  # so that a Float64Array can be laid over it
    numbers = struct.unpack_from("<6d", packed, 12 + length)
    assert numbers[:5] == (0.0, 1.0, 1e9, 1e9 + 0.25, 1.5)
    assert math.isnan(numbers[5])
    assert len(packed) == 12 + length + 6 * 8


@given(st.dictionaries(st.text(max_size=5), st.lists(st.floats(), max_size=5), max_size=4), st.integers(0, 2**60))
def test_what_is_packed_is_unpacked(values: dict[str, list[float]], offset: int) -> None:
    series = {name: of(each) for name, each in values.items()}

    found, told = unpack(pack(series, job="J", offset=offset))

    same(found, series)
    assert told == offset


@pytest.mark.parametrize(
    "change",
    [
        lambda packed: b"",
        lambda packed: packed[:11],
        lambda packed: packed[:-8],
        lambda packed: packed[:-1],
        lambda packed: packed + b"\0" * 8,
        lambda packed: b"X" + packed[1:],
        lambda packed: packed[:8] + b"\xff\xff\xff\xff" + packed[12:],
        lambda packed: packed.replace(b'"rows":2', b'"rows":9'),
        lambda packed: packed.replace(b'"rows":2', b'"rows":-'),
        lambda packed: packed.replace(b'"name"', b'"mane"'),
    ],
)
def test_other_bytes_are_refused(change: Any) -> None:
    with pytest.raises(Damaged, match="no metrics"):
        unpack(change(pack({"loss": of([1, 2])}, job="J", offset=0)))


def test_pieces_are_joined_in_their_order() -> None:
    one, two = {"a": of([1, 2]), "b": of([5])}, {"a": of([3])}

    found = joined([one, two])

    assert found["a"].value.tolist() == [1, 2, 3]
    assert found["b"].value.tolist() == [5]
    assert joined([]) == {}


# On the disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every log is a long one, and read in small pieces."""
    monkeypatch.setattr(metric_index, "LONG_BYTES", -1)
    monkeypatch.setattr(metric_log, "PIECE_BYTES", 2000)


def write(log: Path, steps: range, **more: float) -> None:
    with log.open("ab") as file:
        for step in steps:
            row = {"step": step, "time": 1e9 + step, "loss": math.sin(step), **more}
            if step % 10 == 0:
                row["epoch"] = step // 10
            file.write(orjson.dumps(row) + b"\n")


def whole(log: Path) -> dict[str, Series]:
    return series_of(metric_log.records(log))


@pytest.mark.usefixtures("short")
def test_an_index_that_grows_is_the_same_as_one_made_at_once(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for begin in range(0, 500, 100):
        write(log, range(begin, begin + 100), **({"late": 1.0} if begin >= 300 else {}))
        with log.open("ab") as file:
            file.write(b'{"step": 1, "lo')  # a row on its way
        found, offset = charted(log, 100_000, most_rows=MOST)
        os.truncate(log, offset)
        same(found, whole(log))
    assert offset == log.stat().st_size
    made = charted(log, 20, most_rows=MOST)[0]
    same(made, {name: shown(each, 20) for name, each in whole(log).items()})


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("how", ["another", "shorter", "index", "column", "cut", "half"])
def test_what_no_longer_fits_its_log_is_made_anew(tmp_path: Path, how: str) -> None:
    log = tmp_path / "metrics.jsonl"
    write(log, range(200))
    charted(log, 10, most_rows=MOST)
    folder = tmp_path / metric_index.FOLDER
    column = next(folder.glob("*.value"))
    if how == "another":
        log.unlink()
        write(log, range(1000, 1500))
    elif how == "shorter":
        log.unlink()
        write(log, range(7))
    elif how == "index":
        (folder / "index.json").write_bytes(b"{")
    elif how == "column":
        column.unlink()
    elif how == "cut":
        os.truncate(column, 8)
    else:  # it was ended between the columns and the index
        with column.open("ab") as file:
            file.write(b"x" * 1001)
        write(log, range(200, 300))

    found, _ = charted(log, 100_000, most_rows=MOST)

    same(found, whole(log))


@pytest.mark.usefixtures("short")
def test_many_who_ask_at_once_are_told_the_same(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    write(log, range(2000))
    found: list[dict[str, Series]] = []
    threads = [threading.Thread(target=lambda: found.append(charted(log, 50, most_rows=MOST)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    for each in found:
        same(each, {name: shown(series, 50) for name, series in whole(log).items()})


@pytest.mark.usefixtures("short")
def test_whoever_comes_while_an_index_is_made_does_not_wait_for_it_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_index, "_WAIT_S", 0.05)
    log = tmp_path / "metrics.jsonl"
    write(log, range(10))
    charted(log, 10, most_rows=MOST)
    with (tmp_path / metric_index.FOLDER / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="are being made"):
            charted(log, 10, most_rows=MOST)
    assert len(charted(log, 10, most_rows=MOST)[0]["loss"].value) == 10


@pytest.mark.parametrize("long", [True, False])
def test_a_row_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    monkeypatch.setattr(metric_index, "LONG_BYTES", -1 if long else 2**20)
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1, "loss": 2}\n{"ste\0: 2}\n')
    with pytest.raises(Damaged, match="cannot be read"):
        charted(log, 10, most_rows=MOST)


def test_of_very_many_series_each_has_fewer_points(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(
        b"".join(orjson.dumps({"step": step, **dict.fromkeys("abcde", step)}) + b"\n" for step in range(100))
    )

    found, _ = charted(log, 1000, most_rows=50)

    assert {name: len(each.value) for name, each in found.items()} == dict.fromkeys("abcde", 10)
    assert charted(tmp_path / "none.jsonl", 10, most_rows=MOST) == ({}, 0)
    assert not (tmp_path / metric_index.FOLDER).exists()  # a short log needs none
