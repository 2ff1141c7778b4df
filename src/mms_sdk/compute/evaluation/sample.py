"""What the bootstrap asks of rows and answers: metrics under row counts; and what a report asks beside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from mms_sdk.types import Array

RIGHT = "accuracy"
"""The share of rows whose answer is right, where answers are."""


class Sample(Protocol):
    """Rows with what they are and what was said of them."""

    @property
    def rows(self) -> int:
        """How many."""

    @property
    def shares(self) -> dict[str, Array]:
        """Metrics that are a share of the rows, and which rows, bool, shape (rows,)."""

    def measure(self, counts: Array) -> dict[str, float]:
        """Metrics of the sample in which each row is there so many times.

        Args:
            counts: int, shape (rows,), adding up to more than 0.

        Returns:
            By name, the same names for any counts; NaN where a metric is not defined.
        """

    def take(self, places: Array) -> Self:
        """Some of the rows, by their places."""


class Off(NamedTuple):
    """A row whose answer is off: its place, what it is, what was said, and the score or how far off that is.

    What cannot be told in a few words is empty.
    """

    place: int
    target: str
    predicted: str
    score: float


class Answers(Sample, Protocol):
    """A sample that a whole report is made of."""

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """What an `Evaluation` tells of it besides metrics, by the name of the field.

        Args:
            labels: Names of the version's classes, in order of the scores.
        """

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """The answers that are furthest off, those first, at most so many."""

    def notes(self) -> Iterator[str]:
        """What to know before its numbers are believed."""


def divided(above: Array, below: Array, otherwise: float = math.nan) -> Array:
    """Quotients, float64; `otherwise` where the divisor is 0."""
    quotient: Array = np.full(np.shape(above), otherwise)
    np.divide(above, below, out=quotient, where=np.asarray(below) != 0)
    return quotient


def mean_of(values: Array) -> float:
    """The mean of those that are numbers; NaN where none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else math.nan
