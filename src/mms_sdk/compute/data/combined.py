"""Datasets that are made of others: their rows are written anew, and each making is a snapshot instead of the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mms_sdk.compute.data.bring import Tell, commit_part, told
from mms_sdk.errors import InvalidRequest, SnapshotNotFound
from mms_sdk.schema.dataset import Column, Snapshot
from mms_sdk.storage.changes import Replacement
from mms_sdk.storage.counts import by_label
from mms_sdk.storage.datasets import Dataset

MADE_BY = ("join", "concat")
"""Under which of these the provenance of a snapshot says what it was made of."""
COUNTED = ("label", "split")
"""Columns that rows are counted by: every row has a value."""


def commit_combined(
    dataset: Dataset,
    columns: Sequence[Column],
    batches: Iterable[Mapping[str, Any]],
    *,
    rows: int,
    message: str,
    provenance: Mapping[str, Any],
    tell: Tell,
) -> Snapshot:
    """Commits rows as all that a dataset holds.

    Args:
        dataset: Where to.
        columns: What it will have.
        batches: Rows, as `PartWriter.write` takes them.
        rows: How many there will be.
        message: Kept with the snapshot.
        provenance: Likewise; under one of `MADE_BY` what it is made of.
        tell: Called with the progress.

    Raises:
        InvalidRequest: The dataset holds rows that came in otherwise.
        SnapshotConflict: Somebody committed meanwhile.
    """
    base = dataset.record() if dataset.snapshots() else None
    if base is not None and not _made_so(dataset, base):
        raise InvalidRequest(
            f"what is made of other datasets has a name of its own, or that of such a one before; {base.dataset!r} "
            f"holds rows that came in otherwise, or by a snapshot that expired; choose another name"
        )
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    with dataset.writer(columns) as writer:
        for values in told(batches, "rows stored", rows, tell, size=lambda batch: len(next(iter(batch.values())))):
            for column in columns:
                if column.name in counts and column.labels is not None:
                    counts[column.name].update(by_label(column, values[column.name]))
            writer.write(values)
        change = Replacement(
            parts=(),
            columns=columns,
            splits=counts["split"],
            classes=counts["label"],
            message=message,
            provenance=provenance,
        )
        return commit_part(dataset, writer, change, base=base)


def _made_so(dataset: Dataset, base: Snapshot) -> bool:
    # Rows keep the number of the snapshot that brought them, whatever is deleted, cleaned or put together since.
    brought = {run.snapshot for part in base.parts for run in part.since} or {base.number}
    try:
        return all(any(made in dataset.record(number).provenance for made in MADE_BY) for number in brought)
    except SnapshotNotFound:
        return False


def missing_values(column: Column, rows: int) -> Any:
    """So many rows of a nullable column without a value."""
    if column.varies:
        return [None] * rows
    shape = (rows, *column.fixed)
    return np.ma.MaskedArray(np.zeros(shape, column.dtype), np.ones(shape, bool))
