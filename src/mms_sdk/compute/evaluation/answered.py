"""A version's answers to the rows of a snapshot, beside what is so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.classes import Classes
from mms_sdk.compute.evaluation.intervals import Tell
from mms_sdk.compute.evaluation.known import Known, known_rows
from mms_sdk.compute.evaluation.labels import Labels
from mms_sdk.compute.evaluation.numbers import Numbers
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.inference.stored import StoredRows
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest
from mms_sdk.schema.job import Progress
from mms_sdk.schema.model import ModelCard
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

Answers = Classes | Labels | Numbers


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Rows that were answered, and those that could not be.

    Attributes:
        rows: Numbers of the rows, ascending.
        sample: What they are, and what was said of them.
        known: The rows that were asked.
        unreadable: Rows that could not be prepared.
        first_unreadable: The first of them, and why.
    """

    rows: Rows
    sample: Answers
    known: Known
    unreadable: int
    first_unreadable: str | None


def answer(
    predictor: Predictor, snapshot: OpenSnapshot, rows: Rows, *, labels: Sequence[str], tell: Tell = lambda _: None
) -> Answered:
    """Asks a version about rows whose answer is known.

    Args:
        predictor: The version.
        snapshot: Where the rows are.
        rows: Row numbers, ascending.
        labels: Names of the version's classes, in the order of codes that is wanted.
        tell: Called with the progress.

    Raises:
        InvalidRequest: The data is of another kind than the version takes, or has another target.
        ColumnNotFound: A column is not there.
        DataError: No row can be answered, or answers are no finite numbers.
    """
    stored = StoredRows(predictor, snapshot)
    known = known_rows(predictor.card, snapshot, rows, labels)
    places, scores, errors = _scores(predictor, stored, known.rows, tell)
    answered = known.rows[places]
    if not len(places):
        raise DataError(f"none of {len(known.rows):,} rows can be answered; the first: {errors[0]}")
    if bad := np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(1)).tolist():
        raise DataError(
            f"an evaluation takes finite scores; of {len(scores):,} rows {len(bad):,} have others, e.g. row "
            f"{int(answered[bad[0]])}; look at its values, and whether the training diverged"
        )
    return Answered(
        rows=answered,
        sample=_sample(predictor.card, scores, known.targets[places], labels),
        known=known,
        unreadable=len(errors),
        first_unreadable=errors[0] if errors else None,
    )


def _scores(predictor: Predictor, stored: StoredRows, rows: Rows, tell: Tell) -> tuple[Array, Array, list[str]]:
    size = predictor.buckets[-1]
    places: list[int] = []
    errors: list[str] = []
    scores = [predictor.scores(np.empty((0, *predictor.input_shape), predictor.input_dtype))]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        prepared = stored.prepared(part)
        good = [at for at, row in enumerate(prepared) if not isinstance(row, InvalidInput)]
        if good:
            scores.append(predictor.scores(np.stack([np.asarray(prepared[at]) for at in good])))
        places += [start + at for at in good]
        errors += [f"row {part[at]}: {row.message}" for at, row in enumerate(prepared) if isinstance(row, InvalidInput)]
        tell(Progress(done=start + len(part), total=len(rows), what="rows answered"))
    return np.asarray(places, np.int64), np.concatenate(scores), errors


def _sample(card: ModelCard, scores: Array, targets: Array, labels: Sequence[str]) -> Answers:
    if card.task == "regression":
        said: Any = scores.reshape(len(scores), -1).astype(np.float64)
        if said.shape != targets.shape:
            raise InvalidRequest(
                f"the version says {said.shape[1]} numbers a row, and {card.target!r} has {targets.shape[1]} here; "
                f"evaluate it on data with a target like the one it was trained on"
            )
        return Numbers(said, targets)
    ordered = scores[:, [card.labels.index(label) for label in labels]]
    return Classes(ordered, targets) if card.threshold is None else Labels(ordered, targets, card.threshold)
