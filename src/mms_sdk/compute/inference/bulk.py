"""Bulk prediction: one row out for each row in, into a Parquet file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.compute.data.sources.folders import list_folder
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.inference.stored import StoredRows
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.schema.job import Progress
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.storage import files
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array

Tell = Callable[[Progress], None]


def predict_snapshot(
    predictor: Predictor, snapshot: OpenSnapshot, split: str | None, *, to: Path, top: int, tell: Tell
) -> dict[str, Any]:
    """Predicts every row of a split, in row order.

    Args:
        predictor: The model.
        snapshot: Where the rows lie.
        split: Which rows; None for all.
        to: The Parquet file.
        top: Ranked classes kept; 0 for all.
        tell: Called with the progress.

    Returns:
        `rows`, `errors`, the `first_error` if there are any and, where classes are ranked and rows have labels, the
        `accuracy`.

    Raises:
        ColumnNotFound: The snapshot lacks a column that the model sees.
        InvalidRequest: One of them is of another kind.
    """
    rows = snapshot.split_rows(split)
    stored = StoredRows(predictor, snapshot)

    def batches() -> Iterator[list[_Item]]:
        size = predictor.buckets[-1]
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield list(map(_Item, part.tolist(), stored.sources(part), stored.labels(part), stored.prepared(part)))

    return _write(predictor, batches(), len(rows), to=to, top=top, tell=tell)


def predict_folder(predictor: Predictor, folder: ImageFolder, *, to: Path, top: int, tell: Tell) -> dict[str, Any]:
    """Predicts every file below a folder; one that does not decode gets a row with the reason.

    Args:
        predictor: The model.
        folder: Where the pictures lie, in sub-folders or not.
        to: The Parquet file.
        top: Ranked classes kept; 0 for all.
        tell: Called with the progress.

    Returns:
        `rows`, `errors` and, if there are any, the `first_error`.
    """
    if predictor.kind.name != "image":
        raise InvalidRequest(
            f"a folder holds pictures; this model takes rows of kind {predictor.kind.name}; ingest them as a dataset, "
            f"and predict that"
        )
    entries, _ = list_folder(folder, labelled=False)

    def batches() -> Iterator[list[_Item]]:
        size = predictor.buckets[-1]
        for start in range(0, len(entries), size):
            part = entries[start : start + size]
            yield [
                _Item(row, entry.source, None, _prepared(predictor, _read(entry.path)))
                for row, entry in enumerate(part, start)
            ]

    return _write(predictor, batches(), len(entries), to=to, top=top, tell=tell)


@dataclass(frozen=True)
class _Item:
    """One row in: its number, where it came from, its class if known, and the prepared input, or why there is none."""

    row: int
    source: str
    label: str | None
    prepared: Array | InvalidInput


def _read(path: Path) -> bytes | InvalidInput:
    try:
        return path.read_bytes()
    except OSError as error:
        return InvalidInput(f"the file cannot be read: {error.strerror}")


def _write(
    predictor: Predictor, batches: Iterator[list[_Item]], total: int, *, to: Path, top: int, tell: Tell
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ranked = [
        ("predicted", pa.string()),
        ("score", pa.float32()),
        ("ranked_labels", pa.list_(pa.string())),
        ("ranked_scores", pa.list_(pa.float32())),
    ]
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("source", pa.string()),
            ("label", pa.string()),
            *(ranked if predictor.card.ranks else [("values", pa.list_(pa.float32()))]),
            ("error", pa.string()),
        ],
    )
    draft = to.with_name(f".{to.name}.partial")
    done = errors = right = known = 0
    first_error: dict[str, str] = {}
    try:
        with files.writing(to), pq.ParquetWriter(draft, schema) as writer:
            for batch in batches:
                table = _predict(predictor, batch, top)
                writer.write_table(pa.Table.from_pylist(table, schema=schema))
                done += len(batch)
                failed = [f"{row['source']}: {row['error']}" for row in table if row["error"] is not None]
                errors += len(failed)
                if failed and not first_error:
                    first_error = {"first_error": failed[0]}
                known += sum(row["label"] is not None for row in table)
                right += sum(row["label"] is not None and row["label"] == row.get("predicted") for row in table)
                tell(Progress(done=done, total=total, what="rows predicted"))
        with files.writing(to):
            files.fsync_file(draft)
            draft.replace(to)
            files.fsync_folder(to.parent)
    finally:
        draft.unlink(missing_ok=True)
    told: dict[str, Any] = {"rows": done, "errors": errors, **first_error}
    return {**told, "accuracy": right / known} if known and predictor.card.ranks else told


def _predict(predictor: Predictor, batch: list[_Item], top: int) -> list[dict[str, Any]]:
    good = [item.prepared for item in batch if isinstance(item.prepared, np.ndarray)]
    answers = iter(_answers(predictor, predictor.scores(np.stack(good)), top) if good else ())
    table = []
    for item in batch:
        told: dict[str, Any] = {"row": item.row, "source": item.source, "label": item.label, "error": None}
        if isinstance(item.prepared, InvalidInput):
            told["error"] = item.prepared.message
        else:
            told |= next(answers)
        table.append(told)
    return table


def _answers(predictor: Predictor, scores: Array, top: int) -> Iterator[dict[str, Any]]:
    if not predictor.card.ranks:
        yield from ({"values": row.ravel().tolist()} for row in scores)
        return
    for best in predictor.rank(scores, top):
        yield {
            "predicted": best.label,
            "score": best.ranked[0].score,
            "ranked_labels": [entry.label for entry in best.ranked],
            "ranked_scores": [entry.score for entry in best.ranked],
        }


def _prepared(predictor: Predictor, item: Any) -> Array | InvalidInput:
    if isinstance(item, InvalidInput):
        return item
    try:
        return predictor.prepare(item)
    except InvalidInput as error:
        return error
