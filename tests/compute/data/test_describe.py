"""Columns in numbers, beside NumPy's; and what is no number."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mms_sdk.compute.data import describe as statistics
from mms_sdk.compute.data.describe import describe
from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.schema.statistics import ColumnStatistics
from mms_sdk.storage import edits
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore


def opened(folder: Path, column: Column, *batches: Any) -> OpenSnapshot:
    """A snapshot of one column, a part for each batch."""
    dataset = Dataset.create(LocalStore(folder), "some")
    parts = []
    for batch in batches:
        with dataset.writer((column,)) as writer:
            writer.write({column.name: batch})
            parts.append(writer.close())
    dataset.commit(Addition(parts=parts, columns=(column,)), base=None, rebase=False)
    return dataset.snapshot()


def described(folder: Path, column: Column, *batches: Any) -> ColumnStatistics:
    """Statistics of that column."""
    snapshot = opened(folder, column, *batches)
    (found,) = describe(snapshot, np.arange(snapshot.rows))
    return found


def number(dtype: str, **more: Any) -> Column:
    """A column of numbers."""
    return Column(name="x", kind="number", dtype=dtype, **more)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64"])
def test_figures_of_numbers_are_numpys(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BATCH_ROWS", 7)
    monkeypatch.setattr(statistics, "_AT_ONCE", 5)
    drawn = np.random.default_rng(0).normal(20, 6, 200)
    values = drawn > 22 if dtype == "bool" else drawn.astype(dtype)
    found = described(tmp_path, number(dtype), values[:60], values[60:61], values[61:])
    wide = values.astype(np.float64)

    assert (found.count, found.missing, found.min, found.max) == (200, 0, values.min().item(), values.max().item())
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert found.std == pytest.approx(wide.std(), rel=1e-12, abs=1e-12)
    assert found.histogram is not None
    counts, edges = np.histogram(wide, bins=16, range=(wide.min(), wide.max()))
    assert (found.histogram.low, found.histogram.high) == (edges[0], edges[-1])
    assert found.histogram.counts == tuple(counts.tolist())


def test_a_mean_far_from_zero_costs_no_digits(tmp_path: Path) -> None:
    values = 1e9 + np.random.default_rng(0).normal(size=5_000)
    found = described(tmp_path, number("float64"), values)
    assert found.std == pytest.approx(values.std(), rel=1e-9)
    assert found.mean == pytest.approx(values.mean(), rel=1e-15)


def test_missing_values_are_counted_and_left_out(tmp_path: Path) -> None:
    values = np.ma.masked_less(np.random.default_rng(0).normal(size=300), -1)
    found = described(tmp_path, number("float64", nullable=True), values)
    assert (found.count, found.missing) == (int(values.count()), int(values.mask.sum()))
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.std == pytest.approx(float(values.std()))
    assert found.min == values.min()


def test_what_is_not_finite_is_counted_and_left_out(tmp_path: Path) -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf, -np.inf, 5.0])
    found = described(tmp_path, number("float64"), values)
    assert (found.count, found.not_finite, found.min, found.max, found.mean) == (6, 3, 1.0, 5.0, 3.0)


@pytest.mark.parametrize("values", [np.full(4, np.nan), np.ma.masked_all(4, np.float64)])
def test_a_column_of_nothing_has_no_figures(tmp_path: Path, values: Any) -> None:
    found = described(tmp_path, number("float64", nullable=True), values)
    assert (found.mean, found.min, found.histogram) == (None, None, None)
    assert (found.count, found.missing, found.not_finite) in ((4, 0, 4), (0, 4, 0))


def test_the_largest_numbers_there_are_overflow_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = described(tmp_path / "f", number("float64"), np.array([-1.7e308, 1.7e308, 0.0]))
        whole = described(tmp_path / "i", number("int64"), np.array([-(2**63), 2**63 - 1, 0]))
        plain = described(tmp_path / "u", number("uint64"), np.array([2**64 - 1, 2**64 - 2], np.uint64))
    assert (found.min, found.max, found.std) == (-1.7e308, 1.7e308, None)
    assert found.histogram is not None
    assert (found.histogram.counts[0], found.histogram.counts[-1]) == (1, 1)
    assert (whole.min, whole.max) == (-(2**63), 2**63 - 1)
    assert (plain.min, plain.max) == (2**64 - 2, 2**64 - 1)


def test_one_value_fills_one_bin(tmp_path: Path) -> None:
    found = described(tmp_path, number("int32"), np.full(5, 7, np.int32))
    assert found.histogram is not None
    assert (found.histogram.counts, found.std) == ((5, *[0] * 15), 0.0)


def test_items_of_embeddings_are_numbers_and_series_are_as_long_as_they_are(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    found = described(tmp_path / "e", Column(name="x", kind="embedding", dtype="float32", shape=(9,)), vectors)
    assert (found.count, found.mean) == (40, pytest.approx(vectors.mean(dtype=np.float64), abs=1e-9))
    rows = [np.zeros((n, 2), np.int16) for n in range(1, 31)]
    sound = Column(name="x", kind="audio", dtype="int16", shape=(None, 2), rate_hz=10)
    found = described(tmp_path / "a", sound, rows[:4], rows[4:])
    assert (found.measured, found.min, found.max, found.mean) == ("seconds", 0.1, 3.0, pytest.approx(1.55))
    series = sound.model_copy(update={"kind": "series", "rate_hz": None})
    assert described(tmp_path / "s", series, rows).measured == "items"


def test_names_and_texts_are_counted(tmp_path: Path) -> None:
    codes = np.ma.masked_equal(np.random.default_rng(0).integers(0, 4, 90).astype(np.int32), 3)
    names = Column(name="x", kind="category", dtype="int32", labels=("a", "b", "c", "d"), nullable=True)
    found = described(tmp_path / "c", names, codes)
    (top, count), *_ = Counter("abc"[code] for code in codes.compressed()).most_common()
    assert (found.distinct, found.top_count, found.mean, found.count) == (3, count, None, int(codes.count()))
    assert found.top == top
    texts = ["ünï", "東京", "", "ünï", "x" * 500]
    found = described(
        tmp_path / "t", Column(name="x", kind="text", dtype="uint8", shape=None), [text.encode() for text in texts]
    )
    assert (found.distinct, found.top, found.top_count, found.measured) == (4, "ünï", 2, "characters")
    assert (found.min, found.max, found.mean) == (0, 500, pytest.approx(np.mean([3, 2, 0, 3, 500])))


def test_texts_of_which_there_are_too_many_are_not_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_DISTINCT", 9)
    text = Column(name="x", kind="text", dtype="uint8", shape=None)
    assert described(tmp_path / "9", text, [str(n).encode() for n in range(9)]).distinct == 9
    assert described(tmp_path / "10", text, [str(n).encode() for n in range(10)]).distinct is None


def test_texts_that_are_not_utf8_are_described(tmp_path: Path) -> None:
    found = described(tmp_path, Column(name="x", kind="text", dtype="uint8", shape=None), [b"\xff\xfe", b"a"])
    assert (found.count, found.distinct) == (2, 2)


def test_times_have_a_first_and_a_last(tmp_path: Path) -> None:
    times = np.array(["2024-02-01T00:00:00", "1969-12-31T23:59:59", "2024-02-01T00:00:01"], "M8[ms]")
    column = Column(name="x", kind="timestamp", dtype="int64", unit="ms")
    found = described(tmp_path / "time", column, times.astype(np.int64))
    assert (found.min, found.max, found.mean) == ("1969-12-31T23:59:59", "2024-02-01T00:00:01", None)
    assert found.histogram is not None
    unknown = described(tmp_path / "unit", column.model_copy(update={"unit": "moons"}), np.array([1, 3]))
    assert (unknown.min, unknown.max, unknown.mean) == (1, 3, 2.0)


def test_codes_that_name_nothing_are_told(tmp_path: Path) -> None:
    names = Column(name="x", kind="category", dtype="int32", labels=("a",))
    found = described(tmp_path, names, np.array([-1, 7, 7], np.int32))
    assert (found.distinct, found.top, found.top_count) == (2, "code 7", 2)


def test_pictures_are_told_by_size_and_files_that_are_none_as_unreadable(tmp_path: Path) -> None:
    def file(width: int) -> bytes:
        out = io.BytesIO()
        Image.new("L", (width, 4)).save(out, "PNG")
        return out.getvalue()

    encoded = Column(name="x", kind="encoded-image", dtype="uint8", shape=None, color="gray")
    found = described(tmp_path / "e", encoded, [file(3), file(3), file(5), b"no picture"])
    assert (found.distinct, found.top, found.top_count, found.measured) == (3, "3×4", 2, "bytes")
    pixels = Column(name="x", kind="image", dtype="uint8", shape=(4, 3, 1), color="gray")
    found = described(tmp_path / "d", pixels, np.zeros((6, 4, 3, 1), np.uint8))
    assert (found.distinct, found.top, found.top_count, found.mean) == (1, "3×4", 6, None)


def test_rows_are_cut_by_what_they_weigh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BATCH_BYTES", 100)
    text = Column(name="x", kind="text", dtype="uint8", shape=None)
    sizes = [10, 95, 300, 1, 1, 99, 0, 0]
    snapshot = opened(tmp_path, text, [b"x" * size for size in sizes])
    cut = [batch.tolist() for batch in statistics._batches(snapshot, text, np.arange(8))]
    assert cut == [[0], [1], [2], [3, 4], [5, 6, 7]]


def test_deleted_rows_are_not_described_and_a_split_is_only_its_rows(tmp_path: Path) -> None:
    dataset = Dataset.create(LocalStore(tmp_path), "some")
    columns = (number("int64"), Column(name="split", kind="split", dtype="uint8", labels=SPLITS))
    values, splits = np.arange(30), (np.arange(30) % 3).astype(np.uint8)
    with dataset.writer(columns) as writer:
        writer.write({"x": values, "split": splits})
        part = writer.close()
    counted = dict.fromkeys(SPLITS, 10)
    dataset.commit(Addition(parts=[part], columns=columns, splits=counted), base=None, rebase=False)
    edits.delete_rows(dataset, [29, 0], of=dataset.snapshot())
    snapshot = dataset.snapshot()
    found, _ = describe(snapshot, snapshot.split_rows("train"))
    left = values[1:29][splits[1:29] == 0]
    assert (found.count, found.min, found.max, found.mean) == (9, left.min(), left.max(), left.mean())
