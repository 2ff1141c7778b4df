"""Jobs: submitted, watched, cancelled; their metrics, logs and the files they made."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from mms_sdk.compute.engines.folder import LOG, attempt_folder, of_rank
from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.compute.engines.machine import environment
from mms_sdk.errors import Conflict, InvalidRequest, NotFound
from mms_sdk.schema.job import Attempt, Job, JobKind, JobPage, JobRequest, JobSpec, JobState, LogPiece
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.storage import metric_log

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_PIECE_BYTES = 2**20
_LONGEST_LOG = 2**40  # no file system refuses to seek there
_MOST_RANKS = 10_000_000
JobFile = Literal["predictions.parquet", "rejects.jsonl", "metrics.jsonl", "log.txt", "evaluation.json", "returned.npz"]


@router.get("", **needs("viewer"))
def list_jobs(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: str | None = None,
    kind: JobKind | None = None,
    parent: str | None = None,
) -> JobPage:
    """Jobs, newest first, of one kind or the parts of one; `before` is the `next` of the page before."""
    service.reconcile()
    found = service.workspace.catalog.jobs.list(limit=limit + 1, before=before, kind=kind, parent=parent)
    page = found[:limit]
    return JobPage(jobs=tuple(page), next=page[-1].id if len(found) > limit else None)


@router.get(":counts", **needs("viewer"))
def count_jobs(service: Service) -> dict[JobState, int]:
    """How many jobs there are in each state that any is in."""
    return service.workspace.catalog.jobs.counts()


@router.post("", status_code=202, **needs("editor"))
def submit_job(service: Service, asked: JobRequest) -> Job:
    """Runs code: puts a job into the queue, and starts it if there is room."""
    return _submitted(service, asked)


@router.get("/{job}", **needs("viewer"))
def get_job(service: Service, job: str) -> Job:
    """One job."""
    found = service.workspace.catalog.jobs.get(job)
    if found.ended or found.engine is None or found.engine not in service.engines:
        return found
    service.engines[found.engine].reconcile()
    return service.workspace.catalog.jobs.get(job)


@router.post("/{job}:cancel", **needs("editor"))
def cancel_job(service: Service, job: str) -> Job:
    """Takes a job from the queue, or asks it to stop; after its grace it is ended."""
    found = service.workspace.catalog.jobs.get(job)
    return service.engine(found.engine or LocalEngine.name).cancel(job)


@router.post("/{job}:retry", status_code=202, **needs("editor"))
def retry_job(service: Service, job: str) -> Job:
    """Runs a job that has ended anew, as a job of its own."""
    found = service.workspace.catalog.jobs.get(job)
    if found.engine is None:
        raise Conflict(f"what an engine ran is run anew; job {job} is a {found.kind}; start it again as it was started")
    if not found.ended:
        raise Conflict(f"a job is run anew once it has ended; {job} is {found.state}; wait for it, or cancel it first")
    spec = JobSpec.model_validate(found.spec)
    told = {"kind": found.kind, "name": found.name, "spec": spec, "parent": found.parent, "engine": found.engine}
    asked = JobRequest.model_validate(told)
    return _submitted(service, asked)


@router.get("/{job}/attempts", **needs("viewer"))
def list_attempts(service: Service, job: str) -> list[Attempt]:
    """The attempts at a job, the first one first."""
    service.workspace.catalog.jobs.get(job)
    return service.workspace.catalog.attempts.of(job)


@router.get("/{job}/log", **needs("viewer"))
def get_log(
    service: Service,
    job: str,
    offset: Annotated[int, Query(ge=0, le=_LONGEST_LOG)] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=1000)] = None,
    rank: Annotated[int, Query(ge=0, le=_MOST_RANKS)] = 0,
) -> LogPiece:
    """What a rank of an attempt printed from an offset on, at most a MiB; of the newest attempt if none is named."""
    found = service.workspace.catalog.jobs.get(job)
    attempts = service.workspace.catalog.attempts.of(job)
    numbers = [each.number for each in attempts]
    if attempt is not None and attempt not in numbers:
        raise NotFound(f"job {job} has no attempt {attempt}; there are {numbers or 'none yet'}")
    if not attempts:
        return LogPiece(text="", offset=0, ended=found.ended)
    asked = attempts[-1] if attempt is None else attempts[attempt - 1]
    # Asked before it is read: what is written between would else be taken for nothing.
    over = asked.ended is not None
    path = attempt_folder(service.workspace.job_folder(found.id), asked.number) / of_rank(LOG, rank)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(_PIECE_BYTES)
    except FileNotFoundError:
        piece = b""
    if not over or len(piece) == _PIECE_BYTES:
        piece = _whole_characters(piece)
    return LogPiece(text=piece.decode(errors="replace"), offset=offset + len(piece), ended=over and not piece)


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
    folder = service.workspace.job_folder(recorded.id)
    if recorded.engine is not None and (attempts := service.workspace.catalog.attempts.of(job)):
        folder = attempt_folder(folder, attempts[-1].number)
    path = folder / name
    if not path.is_file():
        raise NotFound(f"job {job} has no file {name}; it is {recorded.state}")
    return _WholeFile(path, media_type="application/octet-stream", filename=name, headers={"accept-ranges": "none"})


def _submitted(service: Service, asked: JobRequest) -> Job:
    filled = asked.spec.model_copy(update={"python": sys.executable, "inherited": environment(os.environ)})
    if asked.parent is not None:
        service.workspace.catalog.jobs.get(asked.parent)
    engine = service.engine(asked.engine)
    engine.check(filled)
    if filled.entrypoint not in (files := service.workspace.bundles.names(filled.bundle)):
        raise InvalidRequest(f"an entrypoint is a file of the bundle; got {filled.entrypoint!r}; it has {files[:20]}")
    request = asked.model_copy(update={"spec": filled})
    job = service.workspace.catalog.attempts.submit(request)
    engine.start_waiting()
    return service.workspace.catalog.jobs.get(job.id)


def _whole_characters(piece: bytes) -> bytes:
    # Without the beginning of one whose rest is still to come: what follows a first byte begins with the bits 10.
    for back in range(1, min(4, len(piece)) + 1):
        byte = piece[-back]
        if byte & 0xC0 != 0x80:
            needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return piece[:-back] if needed > back else piece
    return piece


class _WholeFile(FileResponse):
    # Starlette answers a Range that it does not understand in plain text. RFC 9110 lets a server ignore all of them.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)
