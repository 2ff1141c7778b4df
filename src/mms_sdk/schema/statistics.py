"""What a dataset's columns hold, in numbers."""

from __future__ import annotations

from mms_sdk import drawings, told
from mms_sdk.schema.base import Schema
from mms_sdk.schema.dataset import ColumnKind


class Histogram(Schema):
    """How many values lie in each of some bins of one width.

    Attributes:
        low: Where the first bin begins.
        high: Where the last bin ends; it holds that value too.
        counts: Of each bin.
    """

    low: float
    high: float
    counts: tuple[int, ...]

    def __str__(self) -> str:
        return drawings.blocks(self.counts)

    def _repr_html_(self) -> str:
        counts = ", ".join(f"{count:,}" for count in self.counts)
        words = f"histogram from {told.number(self.low)} to {told.number(self.high)}: {counts}"
        return drawings.histogram(self.counts, words)


class ColumnStatistics(Schema):
    """One column in numbers.

    `min`, `max`, `mean`, `std` and the histogram are of the values of a column of numbers, and of the time of one of
    timestamps; of what a row of another column has, they are of what `measured` says.

    Attributes:
        column: Its name.
        kind: Its kind.
        count: Rows that have a value.
        missing: Rows that have none.
        not_finite: Numbers that are NaN or infinite; they are left out of what follows.
        measured: What the figures are of, e.g. `values`, `bytes`, `characters`, `items`, `seconds`.
        mean: Of what is measured.
        std: Standard deviation of all there are, as by `numpy.std`.
        min: The least; of timestamps the first, ISO 8601.
        max: The greatest; of timestamps the last.
        distinct: How many different names or texts there are; None where that was not counted, or were too many.
        top: The commonest of them.
        top_count: How many rows have it.
        histogram: Of what is measured.
    """

    column: str
    kind: ColumnKind
    count: int
    missing: int
    not_finite: int = 0
    measured: str = ""
    mean: float | None = None
    std: float | None = None
    min: int | float | str | None = None
    max: int | float | str | None = None
    distinct: int | None = None
    top: str | None = None
    top_count: int | None = None
    histogram: Histogram | None = None
