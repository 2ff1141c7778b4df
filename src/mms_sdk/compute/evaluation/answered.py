"""A version's answers to the rows of a snapshot, beside what is so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mms_sdk.compute.evaluation.intervals import Tell
from mms_sdk.compute.evaluation.known import Known
from mms_sdk.compute.evaluation.measures import Measure, measure_of
from mms_sdk.compute.evaluation.sample import Answers
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.inference.stored import StoredRows
from mms_sdk.errors import DataError, InvalidInput
from mms_sdk.schema.job import Progress
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Rows that were answered, and those that could not be.

    Attributes:
        rows: Numbers of the rows, ascending.
        sample: What they are, and what was said of them.
        measure: How they are measured.
        known: The rows that were asked.
        unreadable: Rows that could not be prepared.
        first_unreadable: The first of them, and why.
    """

    rows: Rows
    sample: Answers
    measure: Measure
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
        InvalidRequest: The version's task is not measured, or the data is of another kind than the version takes, or
            has another target.
        ColumnNotFound: A column is not there.
        DataError: No row can be answered, or answers are no finite numbers.
    """
    measure = measure_of(predictor.card, labels)
    stored = StoredRows(predictor, snapshot, ahead=measure.ahead)
    known = measure.known(snapshot, rows)
    places, kept, errors = _kept(predictor, stored, known.rows, measure, tell)
    answered = known.rows[places]
    if not len(places):
        raise DataError(f"none of {len(known.rows):,} rows can be answered; the first: {errors[0]}")
    if bad := np.flatnonzero(~np.isfinite(kept.reshape(len(kept), -1)).all(1)).tolist():
        raise DataError(
            f"an evaluation takes finite scores; of {len(kept):,} rows {len(bad):,} have others, e.g. row "
            f"{int(answered[bad[0]])}; look at its values, and whether the training diverged"
        )
    return Answered(
        rows=answered,
        sample=measure.sample(kept, known.targets[places], tell),
        measure=measure,
        known=known,
        unreadable=len(errors),
        first_unreadable=errors[0] if errors else None,
    )


def _kept(
    predictor: Predictor, stored: StoredRows, rows: Rows, measure: Measure, tell: Tell
) -> tuple[Array, Array, list[str]]:
    size = predictor.buckets[-1]
    places: list[int] = []
    errors: list[str] = []
    kept: list[Array] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        prepared = stored.prepared(part)
        good = [at for at, row in enumerate(prepared) if not isinstance(row, InvalidInput)]
        if good:
            batch = np.stack([np.asarray(prepared[at]) for at in good])
            seen = batch[:, : -measure.ahead] if measure.ahead else batch
            kept.append(measure.kept(batch, predictor.scores(seen)))
        places += [start + at for at in good]
        errors += [f"row {part[at]}: {row.message}" for at, row in enumerate(prepared) if isinstance(row, InvalidInput)]
        tell(Progress(done=start + len(part), total=len(rows), what="rows answered"))
    return np.asarray(places, np.int64), np.concatenate(kept) if kept else np.empty(0), errors
