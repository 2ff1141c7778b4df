"""A dataset's columns in numbers: two passes over each column, some rows at a time.

The first finds the ends, mean and standard deviation (Chan, Golub and LeVeque 1983: each batch's own, merged), the
second counts into bins between the ends. In memory are as many rows as make 64 MiB; of a column of small values, which
a snapshot reads whole, one column at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.kinds.tabular import TIME_UNITS, label_of, told_values
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.statistics import ColumnStatistics, Histogram
from mms_sdk.storage.edits import BATCH_BYTES, BATCH_ROWS
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

BINS = 16
MOST_DISTINCT = 10_000  # texts that are told apart; where there are more, nobody asks for the commonest
_EXCERPT = 80
_AT_ONCE = 2**20  # numbers made float64 at a time


def describe(opened: OpenSnapshot, rows: Rows) -> list[ColumnStatistics]:
    """Every column but ids, over some rows."""
    found = []
    for column in opened.record.columns:
        if column.kind != "id":
            found.append(_of_column(opened, column, rows))
            opened.release(column.name)
    return found


def _of_column(opened: OpenSnapshot, column: Column, rows: Rows) -> ColumnStatistics:
    there = rows[opened.has_value(column.name, rows)]
    moments, names, odd = _Moments(), _Names(), 0
    for batch in _batches(opened, column, there):
        names.add(_names(opened, column, batch))
        for values, finite in _measured(opened, column, batch):
            odd += values - finite.size
            moments.add(finite)
    figures = names.figures()
    if moments.count:
        figures |= moments.figures()
        low, high, counts = float(moments.least), float(moments.greatest), np.zeros(BINS, np.int64)
        for batch in _batches(opened, column, there):
            for _, finite in _measured(opened, column, batch):
                counts += _binned(finite, low, high)
        figures["histogram"] = Histogram(low=low, high=high, counts=tuple(counts.tolist()))
    return ColumnStatistics(
        column=column.name,
        kind=column.kind,
        count=len(there),
        missing=len(rows) - len(there),
        not_finite=odd,
        measured=_unit(column),
        **(_as_times(column, figures) if column.kind == "timestamp" and column.unit in TIME_UNITS else figures),
    )


def _batches(opened: OpenSnapshot, column: Column, rows: Rows) -> Iterator[Rows]:
    # As many rows as are read into so many bytes; a row that is larger comes alone.
    if column.row_bytes is not None:
        step = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, column.row_bytes)))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))
        return
    ends = opened.lengths(column.name, rows).cumsum() * column.item_bytes
    start = 0
    while start < len(rows):
        read = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, read + BATCH_BYTES, side="right"))
        end = max(start + 1, min(end, start + BATCH_ROWS))
        yield rows[start:end]
        start = end


def _unit(column: Column) -> str:
    if not column.varies:
        return ""
    if column.kind == "text":
        return "characters"
    if column.shape is None:
        return "bytes"
    return "seconds" if column.rate_hz else "items"


def _measured(opened: OpenSnapshot, column: Column, rows: Rows) -> Iterator[tuple[int, Array]]:
    # How many numbers there are, and those of them that are finite.
    if column.labels is not None or column.kind == "image":
        return
    if column.kind == "text":
        texts = opened.gather(column.name, rows)
        yield len(rows), np.array([len(text.decode("utf-8", "replace")) for text in texts], np.int64)
    elif column.varies:
        lengths = opened.lengths(column.name, rows)
        yield len(rows), lengths / column.rate_hz if column.rate_hz else lengths
    else:
        values = np.asarray(opened.gather(column.name, rows)).reshape(-1)
        for start in range(0, values.size, _AT_ONCE):
            some = values[start : start + _AT_ONCE]
            yield some.size, some[np.isfinite(some)] if some.dtype.kind == "f" else some


def _names(opened: OpenSnapshot, column: Column, rows: Rows) -> Iterable[tuple[str, int]]:
    # Names, texts or widths and heights that rows have, and how many of them do.
    if column.labels is not None:
        codes, counts = np.unique(np.asarray(opened.gather(column.name, rows)), return_counts=True)
        return [
            (label_of(column.labels, code), count) for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
        ]
    if column.kind == "text":
        return ((text.decode("utf-8", "replace"), 1) for text in opened.gather(column.name, rows))
    if column.kind == "encoded-image":
        sizes = map(image.size, opened.gather(column.name, rows))
        return (("unreadable" if size is None else f"{size[1]}×{size[0]}", 1) for size in sizes)
    return [(f"{column.fixed[1]}×{column.fixed[0]}", len(rows))] if column.kind == "image" else []


@dataclass
class _Moments:
    """Count, ends, mean, and sum of squared differences from it.

    The mean is told from the first number that came, so that those far from zero cost no digits.
    """

    count: int = 0
    least: Any = None
    greatest: Any = None
    origin: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Array) -> None:
        """Takes in numbers that are finite."""
        if not values.size:
            return
        least, greatest = values.min().item(), values.max().item()
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)
        self.origin = self.origin if self.count else float(values[0])
        with np.errstate(over="ignore", invalid="ignore"):  # of the largest numbers there are
            wide = values.astype(np.float64) - self.origin
            mean, total = wide.mean(), self.count + wide.size
            apart = mean - self.mean
            self.squares += float(np.square(wide - mean).sum() + apart**2 * self.count * (wide.size / total))
            self.mean += float(apart * (wide.size / total))
            self.count = total

    def figures(self) -> dict[str, Any]:
        """As they are told; an overflow is no number."""
        mean = self.origin + self.mean if np.isfinite(self.mean) else None
        std = float(np.sqrt(self.squares / self.count)) if np.isfinite(self.squares) else None
        return {"min": self.least, "max": self.greatest, "mean": mean, "std": std}


@dataclass
class _Names:
    """How many rows have each name, as long as there are not too many names."""

    counts: dict[bytes, int] = field(default_factory=dict)
    shown: dict[bytes, str] = field(default_factory=dict)
    too_many: bool = False

    def add(self, found: Iterable[tuple[str, int]]) -> None:
        """Takes in names, and how often each occurs."""
        if self.too_many:
            return
        for name, count in found:
            key = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            self.shown.setdefault(key, name if len(name) <= _EXCERPT else f"{name[: _EXCERPT - 1]}…")
            self.counts[key] = self.counts.get(key, 0) + count
        if len(self.counts) > MOST_DISTINCT:
            self.counts, self.shown, self.too_many = {}, {}, True

    def figures(self) -> dict[str, Any]:
        """How many there are, and the commonest; of several as common the one that came first."""
        if not self.counts:
            return {}
        top = max(self.counts, key=lambda key: self.counts[key])
        return {"distinct": len(self.counts), "top": self.shown[top], "top_count": self.counts[top]}


def _binned(values: Array, low: float, high: float) -> Array:
    if low == high:
        return np.bincount(np.zeros(values.size, np.int64), minlength=BINS)
    # Halved, so that the span of the largest numbers there are is a number too.
    share = (values.astype(np.float64) / 2 - low / 2) / (high / 2 - low / 2)
    return np.bincount(np.minimum((share * BINS).astype(np.int64), BINS - 1), minlength=BINS)


def _as_times(column: Column, figures: dict[str, Any]) -> dict[str, Any]:
    # A mean of times is no time anybody asks for.
    if not figures:
        return {}
    first, last = told_values(column, np.array([figures["min"], figures["max"]], np.int64))
    return {"min": first, "max": last, "histogram": figures["histogram"]}
