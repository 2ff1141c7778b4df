"""The area under the ROC curve, of classes against all others, under row counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mms_sdk.types import Array


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Rows by rising score of one class.

    Attributes:
        order: Rows by rising score, int64, shape (rows,).
        starts: Where rows of a new score begin in that order, int64.
        positive: Which rows are of the class, in that order, bool.
    """

    order: Array
    starts: Array
    positive: Array

    def area(self, counts: Array) -> float:
        """The chance that a row of the class scores higher than another; ties count half (Hanley and McNeil 1982).

        Args:
            counts: How often each row is there, shape (rows,).

        Returns:
            NaN where all rows are of the class, or none is.
        """
        weights = counts[self.order]
        hits = np.add.reduceat(weights * self.positive, self.starts)
        misses = np.add.reduceat(weights * ~self.positive, self.starts)
        pairs = float(hits.sum()) * float(misses.sum())
        below = np.cumsum(misses) - misses
        return float((hits * (below + misses / 2)).sum()) / pairs if pairs else math.nan


def ranking(scores: Array, positive: Array) -> Ranking:
    """Puts rows in order.

    Args:
        scores: Of one class, shape (rows,).
        positive: Which rows are of it, bool, shape (rows,).
    """
    order = np.argsort(scores, kind="stable")
    placed = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], placed[1:] != placed[:-1]]))
    return Ranking(order=order, starts=starts, positive=positive[order])
