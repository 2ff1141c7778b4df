"""Answers that are any number of classes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.classes import LEAST, RANKED_CELLS, absent, class_scores
from mms_sdk.compute.evaluation.ranking import Ranking, ranking
from mms_sdk.compute.evaluation.sample import RIGHT, Off, divided, mean_of
from mms_sdk.schema.evaluation import ClassScore
from mms_sdk.types import Array


@dataclass(frozen=True)
class Labels:
    """Rows of any number of classes each.

    Args:
        scores: The probability of each class, shape (rows, classes), in [0, 1].
        targets: Which classes each row is of, bool, shape (rows, classes).
        threshold: Probability from which a class counts as said.
    """

    scores: Array
    targets: Array
    threshold: float = 0.5

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.targets)

    @cached_property
    def said(self) -> Array:
        """Which classes were said, bool, shape (rows, classes)."""
        return self.scores >= self.threshold

    @cached_property
    def right(self) -> Array:
        """Which rows are right in all classes, bool, shape (rows,)."""
        right: Array = (self.said == self.targets).all(1)
        return right

    @property
    def shares(self) -> dict[str, Array]:
        """See `Sample`."""
        return {RIGHT: self.right}

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`. `micro` counts all classes together, `macro` is the mean over classes."""
        rows = float(counts.sum())
        of, said, hits = (counts @ table for table in (self._targets, self._said, self._hits))
        told = {
            RIGHT: float(counts @ self.right) / rows,
            "hamming_loss": float((of + said - 2 * hits).sum()) / (rows * of.size),
            "log_loss": float(counts @ self._losses) / rows,
        }
        for name, above, below in (("precision", hits, said), ("recall", hits, of), ("f1", 2 * hits, of + said)):
            told[f"{name}_micro"] = float(divided(above.sum(), below.sum()))
            told[f"{name}_macro"] = mean_of(divided(above, below))
        if self.scores.size <= RANKED_CELLS:
            told["roc_auc"] = mean_of(self._areas(counts))
        return told

    def take(self, places: Array) -> Labels:
        """Some of the rows, by their places."""
        return Labels(self.scores[places], self.targets[places], self.threshold)

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """See `Answers`."""
        return {"classes": self.by_class(labels), "absent_classes": absent(labels, self.targets.sum(0))}

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """None: of several classes at once no answer is the furthest off."""
        return []

    def notes(self) -> Iterator[str]:
        """See `Answers`."""
        yield f"a class counts as said from a probability of {self.threshold:g}"

    def by_class(self, labels: Sequence[str]) -> tuple[ClassScore, ...]:
        """How each class fared."""
        tables = (self._targets, self._said, self._hits)
        of, said, hits = (table.sum(0) for table in tables)
        return class_scores(labels, of, said, hits, self._areas(np.ones(self.rows, np.int64)))

    def _areas(self, counts: Array) -> Array:
        return np.asarray([each.area(counts) for each in self._rankings])

    @cached_property
    def _rankings(self) -> list[Ranking]:
        return [ranking(scores, targets) for scores, targets in zip(self.scores.T, self.targets.T, strict=True)]

    @cached_property
    def _targets(self) -> Array:
        return self.targets.astype(np.float64)

    @cached_property
    def _said(self) -> Array:
        return self.said.astype(np.float64)

    @cached_property
    def _hits(self) -> Array:
        return self._targets * self._said

    @cached_property
    def _losses(self) -> Array:
        # Of what is so, the mean over classes; a probability of 0 for it would hide all other rows.
        so = np.where(self.targets, self.scores, 1.0 - self.scores.astype(np.float64))
        losses: Array = -np.log(np.clip(so, LEAST, 1.0)).mean(1)
        return losses
