"""What the bootstrap asks of rows and answers: metrics under row counts."""

from __future__ import annotations

import math
from typing import Protocol

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

    def take(self, places: Array) -> Sample:
        """Some of the rows, by their places."""


def divided(above: Array, below: Array, otherwise: float = math.nan) -> Array:
    """Quotients, float64; `otherwise` where the divisor is 0."""
    quotient: Array = np.full(np.shape(above), otherwise)
    np.divide(above, below, out=quotient, where=np.asarray(below) != 0)
    return quotient


def mean_of(values: Array) -> float:
    """The mean of those that are numbers; NaN where none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else math.nan
