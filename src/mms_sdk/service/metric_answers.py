"""Answers about the metrics of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Job
from mms_sdk.storage import metric_log
from mms_sdk.storage.workspace import Workspace

_LOG = "metrics.jsonl"


def log_of(workspace: Workspace, job: Job) -> tuple[str, Path]:
    """Whose metric log tells of a job, and where it lies.

    It is the job's own; of code that an engine runs and that has none, that of the newest training which it began.
    """
    own = workspace.root / "jobs" / job.id / _LOG
    if job.engine is not None and not own.is_file():
        for part in workspace.catalog.jobs.list(limit=1, kind="train", parent=job.id):
            return part.id, own.parent.parent / part.id / _LOG
    return job.id, own


def rows_since(path: Path, since: int) -> tuple[list[dict[str, Any]], int]:
    """Rows behind a byte offset, at most some MB of them, and the offset to go on from.

    Raises:
        InvalidRequest: The offset is within a row.
    """
    try:
        return metric_log.read(path, since, most=metric_log.PIECE_BYTES)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"since is 0 or the offset of an earlier answer; {since} is within a row") from error
