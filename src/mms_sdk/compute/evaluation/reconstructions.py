"""Answers that are the inputs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.numbers import quantiles
from mms_sdk.compute.evaluation.sample import Off
from mms_sdk.types import Array


@dataclass(frozen=True)
class Reconstructions:
    """Rows as means over their values.

    Args:
        errors: The mean absolute and the mean squared error of each row, float64, shape (rows, 2).
    """

    errors: Array

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.errors)

    @property
    def shares(self) -> dict[str, Array]:
        """None: a row is more or less off."""
        return {}

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`."""
        absolute, squared = counts @ self.errors / counts.sum()
        return {"mae": float(absolute), "rmse": float(np.sqrt(squared))}

    def take(self, places: Array) -> Reconstructions:
        """Some of the rows, by their places."""
        return Reconstructions(self.errors[places])

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """See `Answers`: the quantiles of the root of each row's mean squared error."""
        return {"row_errors": quantiles(self._by_row)}

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """See `Answers`; the score is the root of a row's mean squared error."""
        places = np.argsort(-self._by_row, kind="stable")[:count].tolist()
        return [Off(at, "", "", float(self._by_row[at])) for at in places]

    def notes(self) -> Iterator[str]:
        """None."""
        return iter(())

    @property
    def _by_row(self) -> Array:
        root: Array = np.sqrt(self.errors[:, 1])
        return root


def errors_of(targets: Array, given: Array) -> Array:
    """The mean absolute and the mean squared error of some rows, float64, shape (rows, 2).

    Args:
        targets: Shape (rows, ...).
        given: Of the same shape.
    """
    off = (given.astype(np.float64) - targets).reshape(len(given), -1)
    return np.stack([np.abs(off).mean(1), (off**2).mean(1)], axis=1)
