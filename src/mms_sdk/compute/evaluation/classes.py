"""Answers that are one of several classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.ranking import Ranking, ranking
from mms_sdk.compute.evaluation.sample import RIGHT, Off, divided, mean_of
from mms_sdk.schema.evaluation import Bin, ClassScore
from mms_sdk.types import Array

BINS = 15
"""Of the confidence, as in Guo et al. 2017."""
RANKED_CELLS = 1_000_000
"""Rows times classes up to which areas are measured in every resample; beyond, once for each class."""
LEAST = float(np.finfo(np.float32).tiny)
"""What a score of 0 counts as where its logarithm is taken."""


@dataclass(frozen=True)
class Classes:
    """Rows of one class each.

    Args:
        scores: Shape (rows, classes), in [0, 1], adding up to 1 in each row.
        targets: Codes of the classes they are of, int64, shape (rows,).
    """

    scores: Array
    targets: Array

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.targets)

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.scores.shape[1])

    @cached_property
    def predicted(self) -> Array:
        """The code with the highest score, the lowest of equals; int64, shape (rows,)."""
        best: Array = np.argmax(self.scores, axis=1)
        return best

    @cached_property
    def right(self) -> Array:
        """Which answers are right, bool, shape (rows,)."""
        right: Array = self.predicted == self.targets
        return right

    @property
    def shares(self) -> dict[str, Array]:
        """See `Sample`."""
        return {RIGHT: self.right, **({f"top_{self.top}_accuracy": self._among_top} if self.top else {})}

    @property
    def top(self) -> int:
        """How many of the best classes are looked at together; 0 where there are too few classes for that."""
        return 5 if self.classes > 5 else 2 if self.classes > 2 else 0

    def confusion(self, counts: Array) -> Array:
        """Rows by class and answer, shape (classes, classes)."""
        flat = np.bincount(self.targets * self.classes + self.predicted, counts, self.classes**2)
        return flat.reshape(self.classes, self.classes)

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`. F1 counts classes that rows are of or were said to be of, as scikit-learn does."""
        rows = float(counts.sum())
        of, said, hits = self._totals(counts)
        f1 = divided(2 * hits, of + said)
        told = {
            **{name: float(counts @ share) / rows for name, share in self.shares.items()},
            "balanced_accuracy": mean_of(divided(hits, of)),
            "f1_macro": mean_of(f1),
            "f1_weighted": float(np.nansum(f1 * of)) / rows,
            "log_loss": float(counts @ self._losses) / rows,
            "ece": self._calibration_error(counts),
        }
        if self.ranks:
            told["roc_auc"] = mean_of(self.areas(counts))
        return told

    def _totals(self, counts: Array) -> tuple[Array, Array, Array]:
        # Of each class rows, answers and right ones: the edges of the table, which of many classes is large.
        each = ((self.targets, counts), (self.predicted, counts), (self.targets, counts * self.right))
        of, said, hits = (np.bincount(codes, weights, self.classes) for codes, weights in each)
        return of, said, hits

    @property
    def ranks(self) -> bool:
        """Whether areas are measured in every resample."""
        return self.scores.size <= RANKED_CELLS

    def areas(self, counts: Array) -> Array:
        """The area under the ROC curve of each class against all others, shape (classes,); NaN where there is none."""
        if self.ranks:
            return np.asarray([each.area(counts) for each in self._rankings])
        return np.asarray([self._ranking(code).area(counts) for code in range(self.classes)])

    def take(self, places: Array) -> Classes:
        """Some of the rows, by their places."""
        return Classes(self.scores[places], self.targets[places])

    @cached_property
    def _rankings(self) -> list[Ranking]:
        # Of one of two classes the area is that of the other, up to rounding; both are told, class by class.
        return [self._ranking(code) for code in range(self.classes)]

    def _ranking(self, code: int) -> Ranking:
        return ranking(self.scores[:, code], self.targets == code)

    @cached_property
    def _losses(self) -> Array:
        # A score of 0 for what is so would cost infinitely much, and hide all other rows.
        so = self.scores[np.arange(self.rows), self.targets].astype(np.float64)
        losses: Array = -np.log(np.clip(so, LEAST, 1.0))
        return losses

    @cached_property
    def _among_top(self) -> Array:
        so = np.take_along_axis(self.scores, self.targets[:, None], axis=1)
        # Of equals the lowest code is the better one, as in `predicted`.
        before = np.arange(self.classes) < self.targets[:, None]
        better = (self.scores > so) | ((self.scores == so) & before)
        among: Array = better.sum(1) < self.top
        return among

    @cached_property
    def confidence(self) -> Array:
        """The highest score of each row, float64, shape (rows,)."""
        highest: Array = np.clip(self.scores.max(1).astype(np.float64), 0.0, 1.0)
        return highest

    @cached_property
    def _bins(self) -> Array:
        # Each without its lower end, the first with it.
        bins: Array = np.clip(np.ceil(self.confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        return bins

    def _binned(self, counts: Array) -> tuple[Array, Array, Array]:
        sums = (np.bincount(self._bins, counts * values, BINS) for values in (1.0, self.confidence, self.right))
        rows, confidence, right = sums
        return rows, confidence, right

    def _calibration_error(self, counts: Array) -> float:
        # Expected calibration error, Guo et al. 2017, eq. 3.
        _, confidence, right = self._binned(counts)
        return float(np.abs(right - confidence).sum() / counts.sum())

    def calibration(self) -> tuple[Bin, ...]:
        """How often answers of a confidence are right (Guo et al. 2017, §2)."""
        rows, confidence, right = self._binned(np.ones(self.rows, np.int64))
        means = zip(rows.tolist(), divided(confidence, rows).tolist(), divided(right, rows).tolist(), strict=True)
        return tuple(
            Bin(
                low=at / BINS,
                high=(at + 1) / BINS,
                rows=int(count),
                confidence=mean if count else None,
                accuracy=share if count else None,
            )
            for at, (count, mean, share) in enumerate(means)
        )

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """See `Answers`."""
        ones = np.ones(self.rows, np.int64)
        return {
            "classes": self.by_class(labels),
            "confusion": tuple(map(tuple, self.confusion(ones).astype(np.int64).tolist())),
            "calibration": self.calibration(),
            "absent_classes": absent(labels, np.bincount(self.targets, minlength=len(labels))),
        }

    def notes(self) -> Iterator[str]:
        """See `Answers`."""
        if len(np.unique(self.targets)) == 1:
            yield "all rows are of one class: nothing is told about telling classes apart"
        if not self.ranks:
            yield "areas under ROC curves are told class by class only: rows times classes are too many to resample"

    def by_class(self, labels: Sequence[str]) -> tuple[ClassScore, ...]:
        """How each class fared."""
        ones = np.ones(self.rows, np.int64)
        return class_scores(labels, *self._totals(ones), self.areas(ones))

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """See `Answers`: the wrong answers of the highest score."""
        wrong = np.flatnonzero(~self.right)
        places = wrong[np.argsort(-self.confidence[wrong], kind="stable")[:count]].tolist()
        return [
            Off(at, labels[self.targets[at]], labels[self.predicted[at]], float(self.confidence[at])) for at in places
        ]


def absent(labels: Sequence[str], rows: Array) -> tuple[str, ...]:
    """Classes that no row is of."""
    return tuple(label for label, count in zip(labels, rows.tolist(), strict=True) if not count)


def class_scores(labels: Sequence[str], of: Array, said: Array, hits: Array, areas: Array) -> tuple[ClassScore, ...]:
    """Precision, recall, F1 and area of each class.

    Args:
        labels: Their names.
        of: Rows of each.
        said: Rows said to be of each.
        hits: Rows that are and were said to be.
        areas: Under the ROC curve, NaN for none.
    """
    columns = (divided(hits, said), divided(hits, of), divided(2 * hits, of + said), areas)
    return tuple(
        ClassScore(
            label=label,
            rows=int(of[at]),
            predicted=int(said[at]),
            **{
                name: None if np.isnan(column[at]) else float(column[at])
                for name, column in zip(("precision", "recall", "f1", "roc_auc"), columns, strict=True)
            },
        )
        for at, label in enumerate(labels)
    )
