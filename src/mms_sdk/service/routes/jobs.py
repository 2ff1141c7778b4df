"""Jobs, their metrics and the files they made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from mms_sdk.errors import InvalidRequest, NotFound
from mms_sdk.schema.job import Job, JobKind, JobPage, JobState
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.storage import metric_log

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_LONGEST_LOG = 2**40  # no file system refuses to seek there
JobFile = Literal["predictions.parquet", "rejects.jsonl", "metrics.jsonl", "log.txt", "evaluation.json"]


@router.get("", **needs("viewer"))
def list_jobs(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: str | None = None,
    kind: JobKind | None = None,
    parent: str | None = None,
) -> JobPage:
    """Jobs, newest first, of one kind or the parts of one; `before` is the `next` of the page before."""
    found = service.workspace.catalog.jobs.list(limit=limit + 1, before=before, kind=kind, parent=parent)
    page = found[:limit]
    return JobPage(jobs=tuple(page), next=page[-1].id if len(found) > limit else None)


@router.get(":counts", **needs("viewer"))
def count_jobs(service: Service) -> dict[JobState, int]:
    """How many jobs there are in each state that any is in."""
    return service.workspace.catalog.jobs.counts()


@router.get("/{job}", **needs("viewer"))
def get_job(service: Service, job: str) -> Job:
    """One job."""
    return service.workspace.catalog.jobs.get(job)


@router.get("/{job}/metrics", **needs("viewer"))
def get_metrics(service: Service, job: str, offset: Annotated[int, Query(ge=0, le=_LONGEST_LOG)] = 0) -> dict[str, Any]:
    """Metrics written since a byte offset, and the offset to go on from."""
    recorded = service.workspace.catalog.jobs.get(job)
    log = service.workspace.job_folder(recorded.id) / "metrics.jsonl"
    try:
        rows, end = metric_log.read(log, offset)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"an offset is 0 or what an earlier answer gave; {offset} is within a line") from error
    return {"rows": rows, "offset": end}


@router.get("/{job}/files/{name}", **needs("viewer"))
def get_file(service: Service, job: str, name: JobFile) -> FileResponse:
    """A file the job made."""
    recorded = service.workspace.catalog.jobs.get(job)
    path = service.workspace.job_folder(recorded.id) / name
    if not path.is_file():
        raise NotFound(f"job {job} has no file {name}; it is {recorded.state}")
    return _WholeFile(path, media_type="application/octet-stream", filename=name, headers={"accept-ranges": "none"})


class _WholeFile(FileResponse):
    # Starlette answers a Range that it does not understand in plain text. RFC 9110 lets a server ignore all of them.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)
