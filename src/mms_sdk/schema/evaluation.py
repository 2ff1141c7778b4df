"""Evaluations: how well a version answers known rows, as it is kept and as the API tells it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mms_sdk.schema.base import Schema
from mms_sdk.schema.dataset import ColumnName
from mms_sdk.schema.job import On

Interval = Literal["wilson", "bootstrap", "none"]
"""How an interval was found: Wilson (1927) of a share of rows, or the percentiles of resampled rows."""


class EvaluateJob(Schema):
    """Asks for a version to be evaluated on the rows of a dataset.

    Attributes:
        model: The version.
        dataset: Reference to the rows.
        against: Another version that answers the same rows.
        slices: Columns by whose values rows are told apart.
        confidence: Of the intervals.
        resamples: How often rows are drawn anew, with replacement.
        seed: Of those draws.
        on: The engine that does it; the service's process if left out.
    """

    model: str
    dataset: str
    against: str | None = None
    slices: tuple[ColumnName, ...] = Field(default=(), max_length=8)
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)
    resamples: int = Field(default=1000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    on: On | None = None


class Estimate(Schema):
    """A metric and its interval.

    Attributes:
        value: None where the metric is not defined on these rows, e.g. R² of a target that never varies.
        low: Lower end; None where there is none.
        high: Upper end.
        interval: How the ends were found.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    interval: Interval = "none"

    def __str__(self) -> str:
        value = "–" if self.value is None else f"{self.value:.4f}"
        return value if self.low is None or self.high is None else f"{value} [{self.low:.4f}, {self.high:.4f}]"


class ClassScore(Schema):
    """How one class fared, against all others.

    Attributes:
        rows: Rows that are of it.
        predicted: Rows that were said to be of it.
        precision: Share of those said that are right; None where none was said.
        recall: Share of its rows that were found; None where there are none.
        f1: Harmonic mean of the two; None where there is neither a row nor an answer.
        roc_auc: Area under the ROC curve; None where all rows are of it, or none is.
    """

    label: str
    rows: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None


class Bin(Schema):
    """Answers of about the same confidence.

    Attributes:
        low: Their confidence is above it,
        high: and at most this.
        rows: How many.
        confidence: Mean of theirs; None where there are none.
        accuracy: Share of them that is right.
    """

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class Mistake(Schema):
    """One of the answers that are furthest off.

    Attributes:
        row: Its number in the snapshot.
        source: Where it came from, as far as that is known.
        target: What it is; empty where that is more than a few words.
        predicted: What was said; likewise.
        score: Of classes, the score of the one said; of vectors, the cosine to the nearest row, which is of another
            class; of all else, how far off it is.
    """

    row: int
    source: str
    target: str
    predicted: str
    score: float


class StepError(Schema):
    """How a forecast fared at one of its steps.

    Attributes:
        step: From 1, the one behind the last that is known.
        mae: Mean absolute error of the quantile nearest to the median.
        rmse: Root of its mean squared error.
        naive_mae: Mean absolute error of the last value known.
    """

    step: int
    mae: float
    rmse: float
    naive_mae: float


class Slice(Schema):
    """Some of the rows, and the metrics of them.

    Attributes:
        column: What they have in common,
        value: and its value, or the bounds of it.
    """

    column: str
    value: str
    rows: int
    metrics: dict[str, Estimate]


class McNemar(Schema):
    """Rows that one version answers right and the other does not, and the exact test of McNemar (1947).

    Attributes:
        only_first: Right by the version that is evaluated, and by it alone.
        only_second: Right by the other one alone.
        p_value: Chance of a difference as large or larger, were both as likely to be right; binomial, two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


class Comparison(Schema):
    """Two versions on the same rows.

    Attributes:
        model: The other version.
        metrics: Of the other version.
        differences: Of the version that is evaluated from the other, with the interval of the paired bootstrap.
        mcnemar: Where answers are right or wrong.
    """

    model: str
    metrics: dict[str, float | None]
    differences: dict[str, Estimate]
    mcnemar: McNemar | None = None


class Evaluation(Schema):
    """How well a version answers rows whose answer is known.

    Attributes:
        job: The job that measured it.
        model: The version.
        data: The rows, with the number of their snapshot.
        rows: How many were measured.
        left_out: Rows that were not, by the reason.
        first_left_out: The first of those that could not be read, and why.
        unknown_classes: Rows of classes that the version does not know, which are left out.
        absent_classes: Classes that the version knows and no row has.
        metrics: By name.
        classes: In order of the scores.
        confusion: Rows of each class (first axis) by the class that was said (second), in order of `classes`.
        calibration: Of the highest score, in bins of equal width.
        residuals: Of numbers, predicted minus target: the quantile by name, e.g. `50%`.
        row_errors: Of forecasts, texts and reconstructions, how far off each row is: the quantile by name.
        steps: Of forecasts, by step ahead.
        mistakes: Furthest off first.
        notes: What to know before the numbers are believed.
    """

    job: str
    created_at: str
    model: str
    data: str
    task: str
    target: str
    rows: int
    left_out: dict[str, int] = {}
    first_left_out: str | None = None
    unknown_classes: dict[str, int] = {}
    absent_classes: tuple[str, ...] = ()
    confidence: float
    resamples: int
    seed: int
    metrics: dict[str, Estimate]
    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: tuple[Bin, ...] = ()
    residuals: dict[str, float] = {}
    row_errors: dict[str, float] = {}
    steps: tuple[StepError, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    slices: tuple[Slice, ...] = ()
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
