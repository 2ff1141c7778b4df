"""Bulk prediction: one row out for each row in, into a Parquet file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.compute.data.sources.folders import list_folder
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.errors import InvalidInput
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
        `rows`, `errors`, the `first_error` if there are any and, as the rows have labels, the `accuracy`.
    """
    rows = snapshot.split_rows(split)
    labels = snapshot.column("label").labels or ()
    codes = snapshot.values("label")

    def batches() -> Iterator[list[_Item]]:
        size = predictor.buckets[-1]
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            stored = zip(part, snapshot.gather("image", part), snapshot.gather("source", part), strict=True)
            yield [_Item(int(row), source.decode(), labels[codes[row]], picture) for row, picture, source in stored]

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
    entries, _ = list_folder(folder, labelled=False)

    def batches() -> Iterator[list[_Item]]:
        size = predictor.buckets[-1]
        for start in range(0, len(entries), size):
            part = entries[start : start + size]
            yield [_Item(row, entry.source, None, _read(entry.path)) for row, entry in enumerate(part, start)]

    return _write(predictor, batches(), len(entries), to=to, top=top, tell=tell)


@dataclass(frozen=True)
class _Item:
    """One row in: its number, its name, its class if known, and the input, or why there is none."""

    row: int
    source: str
    label: str | None
    picture: bytes | Array | InvalidInput


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

    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("source", pa.string()),
            ("label", pa.string()),
            ("predicted", pa.string()),
            ("score", pa.float32()),
            ("ranked_labels", pa.list_(pa.string())),
            ("ranked_scores", pa.list_(pa.float32())),
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
                right += sum(row["label"] is not None and row["label"] == row["predicted"] for row in table)
                tell(Progress(done=done, total=total, what="rows predicted"))
        with files.writing(to):
            files.fsync_file(draft)
            draft.replace(to)
            files.fsync_folder(to.parent)
    finally:
        draft.unlink(missing_ok=True)
    told: dict[str, Any] = {"rows": done, "errors": errors, **first_error}
    return {**told, "accuracy": right / known} if known else told


def _predict(predictor: Predictor, batch: list[_Item], top: int) -> list[dict[str, Any]]:
    prepared = [_prepared(predictor, item) for item in batch]
    good = [row for row in prepared if isinstance(row, np.ndarray)]
    ranked = iter(predictor.rank(predictor.scores(np.stack(good)), top) if good else ())
    table = []
    for item, row in zip(batch, prepared, strict=True):
        told: dict[str, Any] = {"row": item.row, "source": item.source, "label": item.label, "error": None}
        if isinstance(row, InvalidInput):
            told["error"] = row.message
        else:
            best = next(ranked)
            told["predicted"] = best.label
            told["score"] = best.ranked[0].score
            told["ranked_labels"] = [entry.label for entry in best.ranked]
            told["ranked_scores"] = [entry.score for entry in best.ranked]
        table.append(told)
    return table


def _prepared(predictor: Predictor, item: _Item) -> Array | InvalidInput:
    if isinstance(item.picture, InvalidInput):
        return item.picture
    try:
        return predictor.prepare(item.picture)
    except InvalidInput as error:
        return error
