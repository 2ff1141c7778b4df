"""Answers that are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.sample import Off, divided, mean_of
from mms_sdk.told import number
from mms_sdk.types import Array

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Numbers:
    """Rows of one number each, or of several.

    Args:
        values: What was said, float64, shape (rows, numbers).
        targets: What is so, float64, of the same shape.
    """

    values: Array
    targets: Array

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.targets)

    @property
    def shares(self) -> dict[str, Array]:
        """None: a number is more or less off."""
        return {}

    @cached_property
    def residuals(self) -> Array:
        """Said minus so, shape (rows, numbers)."""
        return self.values - self.targets

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`. R² is the mean over the numbers of a row, of those that vary, as scikit-learn's is."""
        rows = float(counts.sum())
        squared = counts @ self._squared
        about = self.targets - counts @ self.targets / rows
        variance = counts @ about**2
        return {
            "mae": float((counts @ self._absolute).mean()) / rows,
            "rmse": float(np.sqrt(squared.mean() / rows)),
            "r2": mean_of(1 - divided(squared, variance)),
            "bias": float((counts @ self.residuals).mean()) / rows,
        }

    def take(self, places: Array) -> Numbers:
        """Some of the rows, by their places."""
        return Numbers(self.values[places], self.targets[places])

    def quantiles(self) -> dict[str, float]:
        """Quantiles of the residuals, by name."""
        return quantiles(self.residuals)

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """See `Answers`."""
        return {"residuals": self.quantiles()}

    def worst(self, count: int, labels: Sequence[str] = ()) -> list[Off]:
        """See `Answers`; the score is the largest of a row's residuals."""
        off = self._absolute.max(1)
        places = np.argsort(-off, kind="stable")[:count].tolist()
        return [Off(at, _told(self.targets[at]), _told(self.values[at]), float(off[at])) for at in places]

    def notes(self) -> Iterator[str]:
        """None."""
        return iter(())

    @cached_property
    def _absolute(self) -> Array:
        return np.abs(self.residuals)

    @cached_property
    def _squared(self) -> Array:
        return self.residuals**2


def quantiles(values: Array) -> dict[str, float]:
    """The least, the largest and what lies between, by name."""
    found = np.quantile(values, _QUANTILES)
    return {f"{100 * share:g}%": float(value) for share, value in zip(_QUANTILES, found, strict=True)}


def _told(values: Array) -> str:
    told = [number(float(value)) for value in values[:4]]
    return ", ".join(told) + (", …" if len(values) > 4 else "")
