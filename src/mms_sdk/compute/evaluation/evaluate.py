"""An evaluation from a version and a snapshot: asked, measured, told apart and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.answered import Answered, answer
from mms_sdk.compute.evaluation.compare import compare, refuse_other_rows
from mms_sdk.compute.evaluation.intervals import Tell, estimates
from mms_sdk.compute.evaluation.measures import measure_of
from mms_sdk.compute.evaluation.sample import RIGHT
from mms_sdk.compute.evaluation.slicing import LARGEST, slices_of
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.inference.stored import StoredRows
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.evaluation import Comparison, Estimate, EvaluateJob, Evaluation, Mistake, Slice
from mms_sdk.storage.ids import now
from mms_sdk.storage.snapshots import OpenSnapshot

_WORST = 20
_OF_SLICES = (
    *(RIGHT, "balanced_accuracy", "f1_macro", "f1_micro", "log_loss", "mae", "rmse", "bias"),
    *("mase", "relative_mae", "recall_at_1", "map", "loss", "perplexity", "token_accuracy", "bits_per_byte"),
)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version that is asked.

    Attributes:
        ref: e.g. `flowers@3`.
        predictor: Its answers.
    """

    ref: str
    predictor: Predictor


def evaluate(
    version: Version,
    snapshot: OpenSnapshot,
    split: str | None,
    *,
    asked: EvaluateJob,
    against: Version | None,
    job: str,
    tell: Tell,
) -> Evaluation:
    """Evaluates a version on the rows of a split.

    Args:
        version: Which.
        snapshot: Where the rows are.
        split: Which of them; None for all.
        asked: Slices, and how intervals are found.
        against: Another version to compare with.
        job: Whose work this is.
        tell: Called with the progress.

    Raises:
        InvalidRequest: Versions that cannot be compared, or data that the version does not take.
        ColumnNotFound, SplitNotFound: There is none.
        DataError: There is nothing to compare with, or answers are no finite numbers.
    """
    card = version.predictor.card
    rows = snapshot.split_rows(split)
    # What does not fit is said before the first row is answered.
    slices = {name: slices_of(snapshot, name, rows) for name in asked.slices}
    if against is not None:
        _refuse_other_task(version, against)
    answered = answer(version.predictor, snapshot, rows, labels=card.labels, tell=tell)
    sample = answered.sample
    how: dict[str, Any] = {"confidence": asked.confidence, "resamples": asked.resamples, "seed": asked.seed}
    comparison = _compared(version, against, answered, snapshot, rows, how, tell) if against else None
    metrics = estimates(sample, **how, tell=tell)
    told = [_slices(name, found, rows, answered, how, tell) for name, found in slices.items()]
    return Evaluation(
        job=job,
        created_at=now(),
        model=version.ref,
        data=snapshot.ref + ("" if split is None else f"/{split}"),
        task=card.task,
        target=card.target or "",
        rows=sample.rows,
        left_out=_left_out(answered, card.task),
        first_left_out=answered.first_unreadable,
        unknown_classes=answered.known.unknown,
        **how,
        metrics=metrics,
        **sample.parts(card.labels),
        mistakes=_mistakes(version.predictor, snapshot, answered),
        slices=tuple(each for slices, _ in told for each in slices),
        comparison=comparison,
        notes=(*_notes(answered, split, metrics), *(note for _, note in told if note)),
    )


def _refuse_other_task(version: Version, against: Version) -> None:
    first, second = version.predictor.card, against.predictor.card
    if (first.task, first.target) != (second.task, second.target):
        raise InvalidRequest(
            f"versions are compared that answer the same: {version.ref} is for {first.task} of {first.target!r}, "
            f"{against.ref} for {second.task} of {second.target!r}; name another version"
        )
    if odd := sorted(set(first.labels) ^ set(second.labels)):
        raise InvalidRequest(
            f"versions are compared that know the same classes; only one of {version.ref} and {against.ref} knows "
            f"{odd[:10]}; evaluate each by itself"
        )
    if measure_of(first, ()).alike != measure_of(second, ()).alike:
        raise InvalidRequest(
            f"versions are compared that are measured alike: those of {first.task} share horizon, tokens and what "
            f"preprocessing makes of values; {version.ref} and {against.ref} do not; evaluate each by itself"
        )


def _compared(
    version: Version,
    against: Version,
    answered: Answered,
    snapshot: OpenSnapshot,
    rows: Any,
    how: Mapping[str, Any],
    tell: Tell,
) -> Comparison:
    other = answer(against.predictor, snapshot, rows, labels=version.predictor.card.labels, tell=tell)
    refuse_other_rows(answered.rows, other.rows, names=(version.ref, against.ref))
    return compare(answered.sample, other.sample, model=against.ref, **how, tell=tell)


def _slices(
    column: str, found: Sequence[Any], rows: Any, answered: Answered, how: Mapping[str, Any], tell: Tell
) -> tuple[list[Slice], str]:
    # Among the rows that were answered, which are some of those that were asked for.
    places = np.searchsorted(rows, answered.rows)
    there = [(each.value, np.flatnonzero(np.isin(places, each.places, assume_unique=True))) for each in found]
    there = [(value, some) for value, some in there if len(some)]
    largest = sorted(sorted(range(len(there)), key=lambda at: -len(there[at][1]))[:LARGEST])
    made = [
        Slice(
            column=column,
            value=value,
            rows=len(some),
            metrics=_of_slice(estimates(answered.sample.take(some), **how, tell=tell)),
        )
        for value, some in (there[at] for at in largest)
    ]
    hidden = len(there) - len(largest)
    return made, f"{hidden:,} more slices by {column}, of fewer rows, are not told" if hidden else ""


def _of_slice(metrics: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: estimate for name, estimate in metrics.items() if name in _OF_SLICES}


def _left_out(answered: Answered, task: str) -> dict[str, int]:
    unknown = sum(answered.known.unknown.values()) if task == "classification" else 0
    told = {
        "without a target": answered.known.without,
        "of a class that the version does not know": unknown,
        "unreadable": answered.unreadable,
    }
    return {reason: count for reason, count in told.items() if count}


def _mistakes(predictor: Predictor, snapshot: OpenSnapshot, answered: Answered) -> tuple[Mistake, ...]:
    worst = answered.sample.worst(_WORST, predictor.card.labels)
    rows = answered.rows[np.asarray([each.place for each in worst], np.int64)]
    sources = StoredRows(predictor, snapshot).sources(rows) if worst else []
    return tuple(
        Mistake(row=row, source=source, target=each.target, predicted=each.predicted, score=each.score)
        for row, source, each in zip(rows.tolist(), sources, worst, strict=True)
    )


def _notes(answered: Answered, split: str | None, metrics: Mapping[str, Estimate]) -> Iterator[str]:
    if split in (None, "train"):
        yield "rows that the version was trained on may be among these; name a split that it has not seen, e.g. test"
    if answered.known.unknown:
        told = ", ".join(f"{name} {count:,}" for name, count in list(answered.known.unknown.items())[:10])
        yield f"the version does not know some classes of the data, which count nowhere here (rows): {told}"
    yield from answered.measure.notes()
    yield from answered.sample.notes()
    if any(each.value is not None and each.interval == "none" for each in metrics.values()):
        yield "a metric without an interval is not defined in half of the resamples, or more"
