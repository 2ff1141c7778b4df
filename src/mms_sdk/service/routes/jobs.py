"""Jobs: submitted, watched, cancelled; their metrics, logs and the files they made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from mms_sdk.compute.engines.folder import LOG
from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.errors import Conflict, InvalidRequest
from mms_sdk.schema.artifact import Artifact
from mms_sdk.schema.job import Attempt, Job, JobKind, JobPage, JobRequest, JobSpec, JobState, LogPiece
from mms_sdk.schema.lineage import JobLineage, Reference, Way
from mms_sdk.schema.quota import TopJob
from mms_sdk.schema.rank import Ranks
from mms_sdk.schema.usage import Usage
from mms_sdk.service import artifacts
from mms_sdk.service.following import JobSource, Seen, Told
from mms_sdk.service.logs import is_torn, pieces_of, read_log
from mms_sdk.service.metric_answers import answer
from mms_sdk.service.ranks import looked_at
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.service.submitting import submitted
from mms_sdk.service.top import top
from mms_sdk.service.usage import usage_of
from mms_sdk.settings import prices
from mms_sdk.storage.diffs import diff_in
from mms_sdk.storage.ids import now
from mms_sdk.storage.lineage import exact
from mms_sdk.storage.series import CONTENT_TYPE

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_LONGEST_LOG = 2**40  # no file system refuses to seek there
_ALL: list[Told] = ["event", "log", "metrics"]
_PACKED: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE: {"schema": {"format": "binary"}}}}}
OfAttempt = Annotated[int | None, Query(ge=1, le=1000)]
Rank = Annotated[int, Query(ge=0, lt=100_000)]


@router.get("", **needs("viewer"))
def list_jobs(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: str | None = None,
    kind: JobKind | None = None,
    parent: str | None = None,
    input: str | None = None,
    output: str | None = None,
) -> JobPage:
    """Jobs, newest first, of one kind or the parts of one; `before` is the `next` of the page before.

    With `input` or `output` those that read, or made, a dataset or model: `flowers`, `flowers@7`, `model:flowers@3`.
    """
    asked: dict[Way, str | None] = {"input": input, "output": output}
    touching = {way: _meant(service, text) for way, text in asked.items() if text is not None}
    service.reconcile()
    found = service.workspace.catalog.jobs.list(
        limit=limit + 1, before=before, kind=kind, parent=parent, touching=touching
    )
    page = found[:limit]
    return JobPage(jobs=tuple(page), next=page[-1].id if len(found) > limit else None, costs=_costs(service, page))


@router.get(":counts", **needs("viewer"))
def count_jobs(service: Service) -> dict[JobState, int]:
    """How many jobs there are in each state that any is in."""
    return service.workspace.catalog.jobs.counts()


@router.get(":top", **needs("viewer"))
def top_jobs(service: Service) -> list[TopJob]:
    """What runs on every engine, the most important first, and what waits, in the order in which it will run."""
    service.reconcile()
    return [each for engine in service.engines.values() for each in top(service.workspace, engine)]


@router.post("", status_code=202, **needs("editor"))
def submit_job(service: Service, asked: JobRequest) -> Job:
    """Runs code: puts a job into the queue, and starts it if there is room."""
    if asked.spec.request is not None:
        raise InvalidRequest(f"what is submitted is code; {asked.kind} is asked for where it is done here, with on=")
    return submitted(service, asked)


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
    found = service.engine(found.engine or LocalEngine.name).cancel(job)
    if not found.ended:
        service.workspace.catalog.events.cancelling(job)
    return found


@router.post("/{job}:retry", status_code=202, **needs("editor"))
def retry_job(service: Service, job: str) -> Job:
    """Runs a job that has ended anew, as a job of its own."""
    found = service.workspace.catalog.jobs.kept(job)
    if found.engine is None:
        raise Conflict(f"what an engine ran is run anew; job {job} is a {found.kind}; start it again as it was started")
    if not found.ended:
        raise Conflict(f"a job is run anew once it has ended; {job} is {found.state}; wait for it, or cancel it first")
    spec = JobSpec.model_validate(found.spec)
    diff = diff_in(service.workspace.root / "jobs" / job)
    told = {name: getattr(found, name) for name in ("kind", "name", "parent", "engine", "project")}
    asked = JobRequest.model_validate({**told, "spec": spec, "diff": diff})
    return submitted(service, asked)


@router.get("/{job}/lineage", **needs("viewer"))
def get_lineage(service: Service, job: str) -> JobLineage:
    """What a job reads, and what it has made so far: that of an engine, what its attempts made that have ended."""
    service.workspace.catalog.jobs.get(job)
    return service.workspace.catalog.lineage.of(job)


@router.get("/{job}/attempts", **needs("viewer"))
def list_attempts(service: Service, job: str) -> list[Attempt]:
    """The attempts at a job, the first one first."""
    service.workspace.catalog.jobs.get(job)
    return service.workspace.catalog.attempts.of(job)


@router.get("/{job}/logs", **needs("viewer"))
def get_logs(
    service: Service,
    job: str,
    offset: Annotated[int, Query(ge=0, le=_LONGEST_LOG)] = 0,
    attempt: OfAttempt = None,
    rank: Rank = 0,
) -> LogPiece:
    """What an attempt printed from a byte offset on, at most a MiB of it; of the newest attempt if none is named.

    Of several processes, the one of a rank.
    """
    found = service.workspace.catalog.jobs.kept(job)
    return read_log(service.workspace, found, offset=offset, attempt=attempt, rank=rank)


@router.get("/{job}/metrics", response_model=None, responses=_PACKED, **needs("viewer"))
def get_metrics(
    service: Service,
    request: Request,
    job: str,
    since: Annotated[int, Query(ge=0, le=_LONGEST_LOG)] = 0,
    points: Annotated[int | None, Query(ge=2, le=100_000)] = None,
) -> dict[str, Any] | Response:
    """Rows logged since a byte offset, some MB of them, and the offset to go on from.

    With `points`, each series of the whole log, with at most so many rows, among which are its least and greatest
    values everywhere. With `Accept: application/vnd.mms.metrics` columns of float64 instead of JSON.
    """
    found = service.workspace.catalog.jobs.kept(job)
    packed = CONTENT_TYPE in request.headers.get("accept", "").lower()
    return answer(service.workspace, found, since=since, points=points, packed=packed)


@router.get("/{job}/stream", response_class=StreamingResponse, **needs("viewer"))
async def stream_job(
    service: Service,
    request: Request,
    job: str,
    rank: Rank = 0,
    only: Annotated[list[Told], Query(max_length=10)] = _ALL,
) -> StreamingResponse:
    """Server-sent events: `job` whenever its state or progress changes, `event`, `log`, `metrics`, and at last `end`.

    `only`, once or more often, leaves out what it does not name of the three in the middle. `Last-Event-ID` goes on
    behind a message that came before.
    """
    seen = Seen.of(last) if (last := request.headers.get("last-event-id")) else Seen()
    source = JobSource(service.workspace, service.reconcile, job, rank=rank, only=only, seen=seen)
    return await service.streams.answer(source)


@router.get("/{job}/usage", **needs("viewer"))
def get_usage(service: Service, job: str) -> Usage:
    """What the attempts at a job have had so far: seconds of cores and GPUs, and what they cost at `$MMS_PRICES`."""
    found = service.workspace.catalog.jobs.get(job)
    return usage_of(found, service.workspace.catalog.attempts.of(job), prices=prices(), now=now())


@router.get("/{job}/ranks", **needs("viewer"))
def get_ranks(service: Service, job: str) -> Ranks:
    """The processes of a job's training: which step each is at, what it does, and whether it seems to hang."""
    return looked_at(service.workspace, service.workspace.catalog.jobs.kept(job))


@router.get("/{job}/artifacts", **needs("viewer"))
def list_artifacts(service: Service, job: str, attempt: OfAttempt = None) -> list[Artifact]:
    """The files that a job left, by name; of the newest attempt if none is named."""
    return artifacts.listed(service.workspace, service.workspace.catalog.jobs.kept(job), attempt=attempt)


@router.get("/{job}/artifacts/{name:path}", **needs("viewer"))
def get_artifact(service: Service, job: str, name: str, attempt: OfAttempt = None) -> Response:
    """A file that a job left; of a log whose middle was given up the rest, and a line that says how much is missing."""
    path = artifacts.path_of(service.workspace, service.workspace.catalog.jobs.kept(job), name, attempt=attempt)
    headers = {"accept-ranges": "none"}
    if name == LOG and is_torn(path):
        headers["content-disposition"] = f'attachment; filename="{LOG}"'
        return StreamingResponse(pieces_of(path), media_type="application/octet-stream", headers=headers)
    return _WholeFile(path, media_type="application/octet-stream", filename=path.name, headers=headers)


def _meant(service: Service, text: str) -> Reference:
    asked = Reference.of(text)
    return exact(service.workspace, asked) if isinstance(asked.at, str) else asked


def _costs(service: Service, jobs: Sequence[Job]) -> dict[str, float]:
    if not (known := prices()):
        return {}
    attempts = service.workspace.catalog.attempts.of(*(job.id for job in jobs if job.engine is not None))
    by_job = {id: list(each) for id, each in groupby(attempts, key=lambda attempt: attempt.job)}
    used = {job.id: usage_of(job, by_job.get(job.id, []), prices=known, now=now()) for job in jobs}
    return {id: each.cost for id, each in used.items() if each.cost is not None}


class _WholeFile(FileResponse):
    # Starlette answers a Range that it does not understand in plain text. RFC 9110 lets a server ignore all of them.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)
