"""Bulk prediction: one row out for each row in, into a Parquet file that appears whole or not at all.

What was predicted is saved every so many rows, in a folder beside the file. Whoever does the same again after a kill
finds it there, predicts what is missing, and puts all of it together.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.compute.data.sources.folders import list_folder
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.inference.stored import StoredRows
from mms_sdk.errors import Conflict, Damaged, InvalidInput, InvalidRequest
from mms_sdk.schema.job import Progress
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.storage import fence, files
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array

Tell = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where predictions go.

    Attributes:
        path: The Parquet file.
        top: Ranked classes kept; 0 for all.
        save_every: Rows after which what was predicted is saved, up to whole batches.
    """

    path: Path
    top: int = 0
    save_every: int = 8192


def predict_snapshot(
    predictor: Predictor, snapshot: OpenSnapshot, split: str | None, *, to: Output, tell: Tell
) -> dict[str, Any]:
    """Predicts every row of a split, in row order.

    Args:
        predictor: The model.
        snapshot: Where the rows lie.
        split: Which rows; None for all.
        to: The Parquet file.
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

    def items(start: int, end: int) -> list[_Item]:
        part = rows[start:end]
        return list(map(_Item, part.tolist(), stored.sources(part), stored.labels(part), stored.prepared(part)))

    work = hashlib.sha256(f"{snapshot.ref}/{split}".encode()).hexdigest()
    return _write(predictor, items, len(rows), to=to, work=work, tell=tell)


def predict_folder(predictor: Predictor, folder: ImageFolder, *, to: Output, tell: Tell) -> dict[str, Any]:
    """Predicts every file below a folder; one that does not decode gets a row with the reason.

    Args:
        predictor: The model.
        folder: Where the pictures lie, in sub-folders or not.
        to: The Parquet file.
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

    def items(start: int, end: int) -> list[_Item]:
        return [
            _Item(row, entry.source, None, _prepared(predictor, _read(entry.path)))
            for row, entry in enumerate(entries[start:end], start)
        ]

    work = hashlib.sha256("\0".join(entry.source for entry in entries).encode(errors="surrogateescape")).hexdigest()
    return _write(predictor, items, len(entries), to=to, work=work, tell=tell)


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
    predictor: Predictor,
    items: Callable[[int, int], list[_Item]],
    total: int,
    *,
    to: Output,
    work: str,
    tell: Tell,
) -> dict[str, Any]:
    # What other rows were predicted for, by an attempt before at a folder that has changed since, is not taken.
    schema, size = _schema(predictor), predictor.buckets[-1]
    step = -(-to.save_every // size) * size  # of whole batches: every attempt saves the same rows together
    saved = to.path.with_name(f".{to.path.stem}.{work[:16]}-{step}")
    starts = range(0, total, step)
    try:
        files.make_folder(saved)
        for start in starts:
            end = min(start + step, total)
            path = saved / f"{start:012}.parquet"
            if path.is_file():
                tell(_progress(end, total))
            else:
                places = [(at, min(at + size, end)) for at in range(start, end, size)]
                batches = (_told(_predict(predictor, items(*each), to.top), each[1], total, tell) for each in places)
                _save(path, schema, batches, named=to.path)
        return _joined(to.path, schema, [saved / f"{start:012}.parquet" for start in starts], total)
    finally:
        _forget(saved)


def _forget(saved: Path) -> None:
    with contextlib.suppress(Conflict):  # this attempt was given up, and another one goes on with it
        fence.check()
        files.remove_tree(saved)


def _schema(predictor: Predictor) -> Any:
    import pyarrow as pa

    ranked = [
        ("predicted", pa.string()),
        ("score", pa.float32()),
        ("ranked_labels", pa.list_(pa.string())),
        ("ranked_scores", pa.list_(pa.float32())),
    ]
    return pa.schema(
        [
            ("row", pa.int64()),
            ("source", pa.string()),
            ("label", pa.string()),
            *(ranked if predictor.card.ranks else [("values", pa.list_(pa.float32()))]),
            ("error", pa.string()),
        ],
    )


def _told(rows: list[dict[str, Any]], done: int, total: int, tell: Tell) -> list[dict[str, Any]]:
    tell(_progress(done, total))
    return rows


def _progress(done: int, total: int) -> Progress:
    return Progress(done=done, total=total, what="rows predicted")


def _save(path: Path, schema: Any, batches: Iterator[list[dict[str, Any]]], *, named: Path) -> None:
    import pyarrow as pa

    _publish(path, schema, (pa.Table.from_pylist(batch, schema=schema) for batch in batches), named=named)


def _joined(path: Path, schema: Any, saved: Sequence[Path], total: int) -> dict[str, Any]:
    # What is told of all rows comes from what was saved, whoever predicted it.
    import pyarrow.parquet as pq

    told = _Told()
    _publish(path, schema, map(told.of, map(pq.read_table, saved)), named=path)
    if told.rows != total:
        raise Damaged(f"each row in has one row out; of {total:,}, {told.rows:,} were saved on the way; predict again")
    return told.result(ranks="predicted" in schema.names)


def _publish(path: Path, schema: Any, tables: Iterator[Any], *, named: Path) -> None:
    # Errors name the file that was asked for.
    import pyarrow.parquet as pq

    draft = files.draft_of(path)  # an attempt that was given up may be at the same file
    try:
        with files.writing(named), pq.ParquetWriter(draft, schema) as writer:
            for table in tables:
                writer.write_table(table)
        with files.writing(named):
            files.fsync_file(draft)
            fence.check()
            draft.replace(path)
            files.fsync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


class _Told:
    """What is told of rows that were predicted."""

    def __init__(self) -> None:
        self.rows = self.errors = self.known = self.right = 0
        self.first_error: dict[str, str] = {}

    def of(self, table: Any) -> Any:
        """Takes rows into account; returns them."""
        import pyarrow.compute as pc

        failed = table.filter(pc.is_valid(table["error"]))
        if failed.num_rows and not self.first_error:
            first = failed.slice(0, 1).to_pylist()[0]
            self.first_error = {"first_error": f"{first['source']}: {first['error']}"}
        self.rows += table.num_rows
        self.errors += failed.num_rows
        self.known += table.num_rows - table["label"].null_count
        if "predicted" in table.column_names:
            self.right += pc.sum(pc.equal(table["label"], table["predicted"])).as_py() or 0
        return table

    def result(self, *, ranks: bool) -> dict[str, Any]:
        """See `predict_snapshot`."""
        told: dict[str, Any] = {"rows": self.rows, "errors": self.errors, **self.first_error}
        return {**told, "accuracy": self.right / self.known} if self.known and ranks else told


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
