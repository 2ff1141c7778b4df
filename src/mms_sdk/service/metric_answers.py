"""Answers about the metrics of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fastapi import Response

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Job
from mms_sdk.storage import metric_log, series
from mms_sdk.storage.metric_index import charted
from mms_sdk.storage.workspace import Workspace

_LOG = "metrics.jsonl"
_MOST_ROWS = 2**20  # of an answer: 24 MiB


def log_of(workspace: Workspace, job: Job) -> tuple[str, Path]:
    """Whose metric log tells of a job, and where it lies.

    It is the job's own; of code that an engine runs and that has none, that of the newest training which it began.
    """
    own = workspace.root / "jobs" / job.id / _LOG
    if job.engine is not None and not own.is_file():
        for part in workspace.catalog.jobs.list(limit=1, kind="train", parent=job.id):
            return part.id, own.parent.parent / part.id / _LOG
    return job.id, own


def answer(
    workspace: Workspace, job: Job, *, since: int, points: int | None, packed: bool
) -> dict[str, Any] | Response:
    """Rows behind an offset, or each series of the whole log with at most so many points; in JSON, or as bytes.

    Raises:
        InvalidRequest: The offset is within a row, or there are points, too.
    """
    of, log = log_of(workspace, job)
    if points is None:
        rows, end = rows_since(log, since)
        if not packed:
            return {"job": of, "rows": rows, "offset": end}
        found = series.series_of(rows)
    elif since:
        raise InvalidRequest(
            f"points are of a whole log, since asks for its rest; got {points} and {since}; leave one out"
        )
    else:
        found, end = charted(log, points, most_rows=_MOST_ROWS)
    if packed:
        return Response(series.pack(found, job=of, offset=end), media_type=series.CONTENT_TYPE)
    return {"job": of, "series": {name: _told(each) for name, each in found.items()}, "offset": end}


def rows_since(path: Path, since: int) -> tuple[list[dict[str, Any]], int]:
    """Rows behind a byte offset, at most some MB of them, and the offset to go on from.

    Raises:
        InvalidRequest: The offset is within a row.
    """
    try:
        return metric_log.read(path, since, most=metric_log.PIECE_BYTES)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"since is 0 or the offset of an earlier answer; {since} is within a row") from error


def _told(found: series.Series) -> dict[str, list[Any]]:
    # JSON has no NaN: it is spelt as in the log.
    return {
        name: [value if np.isfinite(value) else str(value) for value in column.tolist()]
        for name, column in found._asdict().items()
    }
